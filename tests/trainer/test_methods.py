"""What each method trains, does between phases, and exports."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from masks_store import (
    InvalidInput,
    OutOfCapacity,
    adapter_sites,
    bind,
    identity_adapter,
    norm_modules,
    normalise,
    packable,
    read_artifact,
    state_of,
    view_of,
)
from trainer.measure import predict_view, score
from trainer.methods import METHODS
from trainer.pipeline import train

from .. import tf32
from ..reference import packnet as twin
from .rig import CPU, bare_ground, loop_for, new_store, plan_for, quick, shapes, state_bits, trained_and_exported

# ---------------------------------------------------------------- PackNet


def test_packnet_retrains_half_as_long_rounded_up_at_a_tenth_of_the_rate_or_the_one_asked_for(ground):
    def again(**fields):
        train, retrain = METHODS["packnet"].choose(ground, quick(lr=0.02, **fields)).phases
        assert (train.epochs, train.lr) == (fields["epochs"], 0.02)
        return retrain.epochs, retrain.lr

    assert again(epochs=3) == (2, pytest.approx(0.002))
    assert again(epochs=4, retrain_lr=0.01) == (2, 0.01)
    assert again(epochs=1, recipe="paper") == (1, pytest.approx(0.002))


def test_free_weights_start_from_exactly_zero_and_the_rest_is_the_base(ground, source):
    loop = loop_for(ground, source, quick())
    for name, free in ground.free.items():
        weight = loop.network.body.get_parameter(name).detach()
        assert state_bits({"": weight[free]}) == state_bits({"": torch.zeros(int(free.sum()))})
        assert state_bits({"": weight[~free]}) == state_bits({"": ground.backbone.tensors[name][~free]})


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_between_the_phases_the_smallest_of_the_tasks_weights_become_zero_as_the_twin_says(
    ground, source, memory_format
):
    loop = loop_for(ground, source, quick(prune=0.6), layout=memory_format)
    plan, (train, retrain) = loop.plan, loop.plan.phases
    before = loop.method.enter(ground, plan, train, loop.network, None)
    generator = torch.Generator().manual_seed(5)
    for name, free in ground.free.items():  # values with many ties, where the task may write
        weight = loop.network.body.get_parameter(name)
        drawn = torch.randn(weight.shape, generator=generator).mul(3).round().div(3)
        with torch.no_grad():
            weight.copy_(torch.where(free, drawn, weight))
    start = {name: loop.network.body.get_parameter(name).detach().clone() for name in ground.free}
    after = loop.method.enter(ground, plan, retrain, loop.network, before)
    for name, free in ground.free.items():
        gone = twin.pruned(start[name], free, 0.6)
        now = loop.network.body.get_parameter(name).detach()
        assert {tuple(p) for p in (free & ~after[f"body.{name}"]).nonzero().tolist()} == gone
        for position in free.nonzero().tolist():
            place = tuple(position)
            assert float(now[place]) == (0.0 if place in gone else float(start[name][place]))
        assert torch.equal(now[~free], start[name][~free])
        assert bool((now.view(torch.int32)[free & ~after[f"body.{name}"]] == 0).all()), "freed weights are +0.0"


def test_the_artifact_claims_what_survived_with_the_values_it_was_verified_with(ground, source):
    _, trained, exported = trained_and_exported(ground, source, quick(prune=0.75))
    artifact = exported.artifact
    for name, free in ground.free.items():
        info = artifact.manifest.masks[f"mask/{name}"]
        assert info.bits == int(free.sum())
        assert info.ones == int(free.sum()) - round(0.75 * int(free.sum()))
        mask = trained.trainable[f"body.{name}"]
        weight = trained.network.body.get_parameter(name).detach().contiguous()
        assert state_bits({"": artifact.tensors[f"value/{name}"]}) == state_bits({"": weight[mask.contiguous()]})
        assert state_bits({"": exported.view.weights[name]}) == state_bits({"": weight})


def test_prune_0_keeps_all_that_is_free_in_one_phase(ground, source):
    loop, _, exported = trained_and_exported(ground, source, quick(prune=0))
    assert [phase.name for phase in loop.plan.phases] == ["train"]
    assert all(info.ones == info.bits for info in exported.artifact.manifest.masks.values())


def test_retraining_takes_half_the_epochs(ground, source):
    assert [phase.epochs for phase in plan_for(ground, source, quick(epochs=8)).phases] == [8, 4]
    assert [phase.epochs for phase in plan_for(ground, source, quick(epochs=1)).phases] == [1, 1]
    assert [phase.epochs for phase in plan_for(ground, source, quick(epochs=None)).phases] == [20, 10]


@pytest.mark.parametrize(
    ("keep", "adapted", "norm", "own"),
    [
        (0.5, False, "auto", True),
        (0.5, True, "auto", False),
        (1.0, False, "auto", False),
        (0.0, False, "auto", False),
        (0.5, False, "shared", False),
        (0.5, True, "own", True),
    ],
)
def test_norm_auto_is_own_only_where_a_backbone_was_pruned_without_its_data(source, keep, adapted, norm, own):
    ground = bare_ground(keep=keep)
    manifest = ground.backbone.manifest.model_copy(update={"norm_adapted": adapted})
    ground = dataclasses.replace(ground, backbone=dataclasses.replace(ground.backbone, manifest=manifest))
    assert (
        METHODS["packnet"].choose(ground, quick(norm=norm, train_layers="head" if keep == 1.0 else "all")).own_norm
        is own
    )


def test_an_own_norm_starts_from_the_backbones_and_travels_whole(ground, source):
    loop = loop_for(ground, source, quick(norm="own"))
    state = loop.network.body.state_dict()
    for name in norm_modules(loop.network.body):
        for field in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(state[f"{name}.{field}"], ground.backbone.tensors[f"{name}.{field}"])
    _, trained, exported = trained_and_exported(ground, source, quick(norm="own"))
    norms = exported.artifact.of_kind("norm")
    assert len(norms) == 4 * len(norm_modules(loop.network.body))
    for name, tensor in norms.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, trained.network.body.state_dict()[name])
        assert not torch.equal(tensor, ground.backbone.tensors[name]), f"{name} should have trained"
    assert not trained_and_exported(ground, source, quick(norm="shared"))[2].artifact.of_kind("norm")


def test_the_founding_claim_starts_from_kaiming_and_carries_norm_and_biases(source):
    ground = bare_ground(keep=0.0)
    loop, _, exported = trained_and_exported(ground, source, quick())
    assert loop.plan.founding
    start = loop_for(ground, source, quick())
    for name, weight in packable(start.network.body).items():
        spread = (2.0 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5  # He et al.: fan out, ReLU
        assert 0.5 * spread < float(weight.detach().std()) < 2.0 * spread, name
    assert len(exported.artifact.of_kind("norm")) == 4 * len(norm_modules(start.network.body))
    freed = [
        int((exported.view.weights[name] == 0).sum()) / exported.view.weights[name].numel() for name in ground.free
    ]
    assert all(0.7 < share < 0.8 for share in freed)


def test_a_founding_claim_beside_anothers_is_plus_zero_where_that_one_owns(source):
    """Another root of the same empty store owns half of everything; chosen by position, or -0.0 would stand there."""
    ground, generator = bare_ground(keep=0.0), torch.Generator().manual_seed(2)
    free = {name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in ground.free.items()}
    loop = loop_for(dataclasses.replace(ground, free=free), source, quick())
    assert loop.plan.founding
    for name, mask in free.items():
        weight = loop.network.body.get_parameter(name).detach()
        assert not bool(weight.view(torch.int32)[~mask].any()), name
        assert bool((weight[mask] != 0).all())


def test_packnet_without_free_weights_says_how_to_get_them(source):
    with pytest.raises(OutOfCapacity, match=r"--keep 0\.5.*--method clr"):
        METHODS["packnet"].choose(bare_ground(keep=1.0), quick())
    ground = bare_ground(keep=0.5)
    full = dataclasses.replace(ground, free={n: torch.zeros_like(m) for n, m in ground.free.items()})
    with pytest.raises(OutOfCapacity, match=r"tasks own them all.*taskpack rm"):
        METHODS["packnet"].choose(full, quick())


# ---------------------------------------------------------------- the published recipes


def test_packnets_published_recipe(ground, source):
    plan = plan_for(ground, source, quick(recipe="paper", epochs=None, batch_size=None))
    train, retrain = plan.phases
    assert (train.optimizer, train.lr, train.schedule, train.epochs) == ("sgd", 1e-3, "half", 20)
    assert (retrain.optimizer, retrain.lr, retrain.schedule, retrain.epochs) == (
        "sgd",
        pytest.approx(1e-4),
        "constant",
        10,
    )
    assert (train.weight_decay, train.clip, retrain.clip, retrain.start_counts) == (0.0, None, None, True)
    assert (plan.batch_size, plan.own_norm, plan.prune, plan.recipe, plan.augment) == (32, False, 0.75, "paper", True)
    assert plan_for(ground, source, quick(recipe="paper", norm="own")).own_norm
    assert plan_for(ground, source, quick()).own_norm


@pytest.mark.parametrize("method", ["clr", "bn", "linear"])
def test_the_published_recipe_of_order_free_methods_is_without_augmentation(ground, source, method):
    best, paper = (plan_for(ground, source, quick(method=method, recipe=recipe)) for recipe in ("best", "paper"))
    assert (best.augment, paper.augment) == (True, False)
    assert (paper.phases[0].optimizer, paper.phases[0].lr, paper.phases[0].schedule) == ("adam", 1e-3, "thirds")
    assert (best.phases[0].optimizer, best.phases[0].lr, best.phases[0].schedule) == ("adam", 3e-3, "cosine")
    assert best.phases[0].patience is None, "a cosine that ends early has not come down"


def test_without_augmentation_the_loop_trains_on_the_squares_of_evaluation(ground, source):
    """Two epochs at a learning rate of nothing see the same pictures, so they have the same mean loss."""
    losses = {}
    for recipe in ("best", "paper"):
        loop = loop_for(ground, source, quick(method="linear", recipe=recipe, lr=1e-30))
        losses[recipe] = [row.train_loss for row in loop.run().rows]
    assert losses["paper"][0] == pytest.approx(losses["paper"][1], rel=1e-6)
    assert losses["best"][0] != pytest.approx(losses["best"][1], rel=1e-6)


# ---------------------------------------------------------------- which layers, and whole filters


def test_only_the_last_layers_free_weights_train_and_are_claimed(ground, source):
    loop, trained, exported = trained_and_exported(ground, source, quick(train_layers="last:2", norm="shared"))
    names = list(packable(loop.network.body))
    claimed = {name.removeprefix("mask/") for name in exported.artifact.manifest.masks}
    assert claimed == set(names[-2:])
    for name, free in ground.free.items():
        weight = trained.network.body.get_parameter(name).detach()
        moved = bool((weight != ground.base[name])[free].any())
        assert moved is (name in names[-2:]), name


def test_a_packnet_task_of_its_head_alone_claims_nothing_and_registers(tmp_path, data):
    with new_store(tmp_path / "store") as store:
        before = store.capacity_left()
        report = train(store, "shapes", data, quick(train_layers="head", norm="shared"))
        assert (report.claimed, report.prune) == (0, 0.0)
        assert store.capacity_left() == before
        assert store.verify() == []
        view = store.view(report.version)
        assert state_bits(view.weights) == state_bits({name: store.backbone.tensors[name] for name in view.weights})


def test_a_task_that_takes_nothing_is_not_told_of_too_few_free_weights(tmp_path, data):
    with new_store(tmp_path / "whole", keep=1.0) as store:
        assert train(store, "shapes", data, quick(train_layers="head", pick=True, lr=5e-2)).warnings == ()
    with new_store(tmp_path / "half") as store:
        left = train(store, "other", data, quick(dry_run=True)).tasks_left
        assert train(store, "shapes", data, quick(train_layers="head")).tasks_left == left > 1


def test_a_norm_that_another_task_trained_for_itself_is_told(tmp_path, data):
    with new_store(tmp_path / "store") as store:
        assert train(store, "first", data, quick(norm="shared")).warnings == ()
        own = train(store, "second", data, quick())
        assert own.warnings == ()
        third = train(store, "third", data, quick(norm="shared"))
        (warning,) = third.warnings
        assert "task 'second' trained for itself; --norm own gives 'third' its own" in warning
        norms = [state_bits(store.view(report.version).overlay.norm) for report in (own, third)]
        assert norms[0] == norms[1]
    with new_store(tmp_path / "empty", keep=0.0) as store:
        for name in ("first", "second"):
            assert train(store, name, data, quick()).warnings == (), "a founding claim's norm is for all"


def test_a_founding_claim_is_the_same_whether_it_was_to_pick_or_not(source):
    ground = bare_ground(keep=0.0)
    assert plan_for(ground, source, quick(pick=True)) == plan_for(ground, source, quick())


def test_the_published_recipe_learns_its_picks_at_the_rate_that_piggyback_published(ground):
    train_phase = METHODS["packnet"].choose(ground, quick(pick=True, recipe="paper")).phases[0]
    assert train_phase.lr * train_phase.mask_factor == pytest.approx(1e-4)


def test_layers_that_cannot_be_taken_are_refused_with_what_to_do(ground, source):
    with pytest.raises(InvalidInput, match="tinyresnet has 6 layers"):
        plan_for(ground, source, quick(train_layers="last:7"))
    with pytest.raises(InvalidInput, match=r"last:2 needs a base.*--on TASK"):
        plan_for(bare_ground(keep=0.0), source, quick(train_layers="last:2"))
    last = list(ground.free)[-1]
    full = dataclasses.replace(ground, free={**ground.free, last: torch.zeros_like(ground.free[last])})
    with pytest.raises(OutOfCapacity, match="no free weights in last:1"):
        plan_for(full, source, quick(train_layers="last:1"))


def test_pruning_by_filters_gives_whole_filters_back(ground, source):
    _, trained, _ = trained_and_exported(ground, source, quick(prune=0.5, prune_by="filters"))
    for name, free in ground.free.items():
        left = trained.trainable[f"body.{name}"]
        filters, mine = left.flatten(1).any(1), free.flatten(1).any(1)
        assert int(filters.sum()) == int(mine.sum()) - round(0.5 * int(mine.sum()))
        assert torch.equal(left[filters], free[filters]), "a filter that is kept keeps all its weights"


# ---------------------------------------------------------------- CLR and its baselines


def test_an_identity_adapter_is_the_backbone_bit_for_bit_at_the_start(ground, source):
    loop = loop_for(ground, source, quick(method="clr"))
    network = loop.network.eval()
    pictures = torch.from_numpy(
        source.splits["val"].squares(torch.arange(5).numpy(), ground.backbone.manifest.preprocess)
    )
    batch = normalise(pictures.permute(0, 3, 1, 2).contiguous(), ground.backbone.manifest.preprocess)
    plain = ground.backbone.body().to(memory_format=torch.channels_last)
    batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert state_bits({"": network.body(batch)}) == state_bits({"": plain(batch)})
    sites = adapter_sites(ground.backbone.shape_only())
    assert {n for n, _ in network.named_parameters() if n.endswith("adapter")} == {f"body.{s}.adapter" for s in sites}
    assert all(max(conv.kernel_size) > 1 for conv in sites.values())


@pytest.mark.parametrize(("method", "kinds"), [("clr", {"adapter", "norm"}), ("bn", {"norm"}), ("linear", set())])
def test_order_free_methods_change_only_what_is_their_own(ground, source, method, kinds):
    _, trained, exported = trained_and_exported(ground, source, quick(method=method, lr=1e-2))
    found = {name.partition("/")[0] for name in exported.artifact.tensors if "/" in name}
    assert found == kinds
    assert not exported.artifact.manifest.masks
    weights = dict(exported.view.weights)
    assert state_bits(weights) == state_bits({n: ground.backbone.tensors[n] for n in weights})
    state = trained.network.body.state_dict()
    for name, tensor in exported.artifact.of_kind("norm").items():
        assert not torch.equal(tensor, ground.backbone.tensors[name])
    for name in norm_modules(trained.network.body) if method == "linear" else ():
        assert torch.equal(state[f"{name}.running_mean"], ground.backbone.tensors[f"{name}.running_mean"])


@pytest.mark.parametrize(
    ("chosen", "free"),
    [
        ({"method": "clr"}, True),
        ({"method": "clr", "adapter": "full"}, True),
        ({"method": "bn"}, True),
        ({"method": "linear"}, True),
        ({"method": "piggyback"}, True),
        ({"method": "packnet"}, False),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_comes_before_a_task_changes_the_artifacts_of_packnet_alone(tmp_path, chosen, free):
    data = {name: shapes(tmp_path / f"{name}.npz", seed=seed) for seed, name in enumerate(("one", "two"))}
    versions = []
    for order in (["one", "two"], ["two", "one"]):
        with new_store(tmp_path / order[0], keep=0.5 if chosen["method"] == "packnet" else 1.0) as store:
            versions.append({task: train(store, task, data[task], quick(epochs=1, **chosen)).version for task in order})
    assert (versions[0] == versions[1]) is free
    assert len({version for made in versions for version in made.values()}) == (2 if free else 4)


def test_clr_full_adapts_every_convolution_and_starts_at_the_same_features(ground, source):
    sites = adapter_sites(ground.backbone.shape_only(), full=True)
    ones = {name for name, conv in sites.items() if max(conv.kernel_size) == 1}
    assert ones
    assert ones.isdisjoint(adapter_sites(ground.backbone.shape_only()))
    loop = loop_for(ground, source, quick(method="clr", adapter="full"))
    plain = ground.backbone.body().to(memory_format=torch.channels_last)
    batch = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert state_bits({"": loop.network.eval().body(batch)}) == state_bits({"": plain(batch)})
    _, _, exported = trained_and_exported(ground, source, quick(method="clr", adapter="full", lr=1e-2))
    kernels = exported.artifact.of_kind("adapter")
    assert set(kernels) == set(sites)
    for name in ones:
        assert not torch.equal(kernels[name], identity_adapter(sites[name].out_channels))


def test_a_clr_full_task_registers_and_reports_what_its_adapters_take(tmp_path, data):
    with new_store(tmp_path / "store") as store:
        small, full = (
            train(store, adapter, data, quick(method="clr", adapter=adapter)) for adapter in ("depthwise", "full")
        )
        assert store.verify() == []
        body = store.backbone.shape_only()
        for report, sites in ((small, adapter_sites(body)), (full, adapter_sites(body, full=True))):
            assert report.parts["adapter"] == 4 * 9 * sum(conv.out_channels for conv in sites.values())
            assert sum(report.parts.values()) < report.bytes < sum(report.parts.values()) + 20_000
        assert full.parts["norm"] == small.parts["norm"]


def test_clr_has_the_published_recipe(ground, source):
    plan = plan_for(ground, source, quick(method="clr", epochs=None, batch_size=None, recipe="paper"))
    (phase,) = plan.phases
    assert (phase.optimizer, phase.lr, phase.epochs, phase.schedule) == ("adam", 1e-3, 60, "thirds")
    assert (phase.patience, phase.penalty, plan.batch_size, plan.own_norm) == (21, 1e-5, 32, True)


def test_clr_on_a_packnet_task_starts_at_that_tasks_features(ground, source):
    _, _, base = trained_and_exported(ground, source, quick(epochs=3, lr=0.05))
    above = dataclasses.replace(ground, lineage=(base.artifact,))
    loop = loop_for(above, source, quick(method="clr"))
    network = loop.network.eval()
    task = bind(ground.backbone, base.view)
    network.head.load_state_dict({"weight": base.view.overlay.head_weight, "bias": base.view.overlay.head_bias})
    batch = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(batch), task(batch), rtol=0, atol=2e-6)
    state = {n: t for n, t in network.body.state_dict().items() if not n.endswith(("adapter", "num_batches_tracked"))}
    expected = state_of(ground.backbone, base.view)
    assert state_bits(state) == state_bits({n: expected[n] for n in state})


def test_a_task_on_a_clr_task_keeps_its_adapters(ground, source):
    _, _, base = trained_and_exported(ground, source, quick(method="clr", lr=1e-2))
    above = dataclasses.replace(ground, lineage=(base.artifact,))
    for method in ("linear", "clr"):
        network = loop_for(above, source, quick(method=method)).network
        for site, kernel in base.artifact.of_kind("adapter").items():
            assert torch.equal(network.body.get_parameter(f"{site}.adapter").detach(), kernel)


# ---------------------------------------------------------------- rule 4: the storage dtype


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)]
)
@pytest.mark.parametrize("method", ["packnet", "clr"])
def test_values_are_rounded_before_they_are_verified(ground, source, method, dtype, torch_dtype):
    _, trained, exported = trained_and_exported(
        ground, source, quick(method=method, value_dtype=dtype, lr=1e-2, norm="auto")
    )
    tensors = exported.artifact.tensors
    rounded = [n for n in tensors if n.startswith(("value/", "adapter/", "head."))]
    assert {tensors[name].dtype for name in rounded} == {torch_dtype}
    assert {tensors[name].dtype for name in tensors if name.startswith("norm/")} == {torch.float32}
    read_back = view_of(ground.backbone, (read_artifact(exported.data),))
    logits = bind(ground.backbone, read_back)
    metrics = exported.artifact.manifest.metrics
    measured = {"val": (exported.val, metrics.val_top1), "test": (exported.test, metrics.test_top1)}
    for name, (said, top1) in measured.items():
        split = source.splits[name]
        squares = split.squares(torch.arange(len(split)).numpy(), read_back.preprocess)
        pictures = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()
        answers, labels = logits(normalise(pictures, read_back.preprocess)), torch.from_numpy(split.labels)
        assert top1 == float((answers.argmax(1) == labels).double().mean())
        assert said.loss == pytest.approx(float(torch.nn.functional.cross_entropy(answers, labels)), rel=1e-5)
        unrounded = score(trained.network, split, read_back.preprocess, CPU, 0)
        if dtype != "f16":  # which rounds so little that the loss hardly tells
            assert (said.loss == pytest.approx(unrounded.loss, rel=1e-5)) is (dtype == "f32")
    exact = torch.equal(exported.view.overlay.head_weight, trained.network.head.weight.detach())
    assert exact is (dtype == "f32"), "rounding should be visible below f32"


def test_what_the_file_says_is_measured_without_tf32(ground, source):
    view = trained_and_exported(ground, source, quick(epochs=1, method="linear"))[2].view
    with tf32.never_used():
        predict_view(ground.backbone, view, source.splits["val"], CPU, 0)


def test_the_test_split_is_read_once_and_only_by_the_export(ground, source):
    reads: list[int] = []

    class Watched:
        labels = source.splits["test"].labels

        def __len__(self):
            return len(source.splits["test"])

        def squares(self, indices, preprocess):
            reads.extend(int(i) for i in indices)
            return source.splits["test"].squares(indices, preprocess)

    watched = dataclasses.replace(source, splits={**source.splits, "test": Watched()})
    _, _, exported = trained_and_exported(ground, watched, quick())
    assert sorted(reads) == list(range(len(source.splits["test"])))
    assert exported.artifact.manifest.metrics.test_top1 == exported.test.top1


def test_the_probe_is_synthetic_unless_real_pictures_are_asked_for(ground, source):
    from masks_store import unpack_images

    preprocess = ground.backbone.manifest.preprocess
    val = source.splits["val"].squares(torch.arange(len(source.splits["val"])).numpy(), preprocess)
    known = {picture.tobytes() for picture in val}
    for probe, inside in (("synthetic", False), ("real", True)):
        exported = trained_and_exported(ground, source, quick(epochs=1, probe=probe))[2]
        pictures = unpack_images(exported.artifact.tensors["probe.images"], preprocess.size)
        assert {picture.tobytes() in known for picture in pictures} == {inside}


def _without_norm():
    """A ground whose backbone is a VGG without BatchNorm; names and shapes only."""
    ground = bare_ground(keep=0.5)
    manifest = ground.backbone.manifest.model_copy(update={"arch": "vgg11", "arch_args": {}})
    return dataclasses.replace(ground, backbone=dataclasses.replace(ground.backbone, manifest=manifest))


@pytest.mark.parametrize("settings", [quick(norm="own"), quick(method="clr"), quick(method="bn")])
def test_a_norm_of_its_own_is_refused_where_the_backbone_has_none(settings):
    with pytest.raises(InvalidInput, match="vgg11 has no BatchNorm"):
        METHODS[settings.method].choose(_without_norm(), settings)


def test_shared_and_head_only_tasks_need_no_norm():
    assert METHODS["packnet"].choose(_without_norm(), quick()).own_norm is False
    assert METHODS["linear"].choose(_without_norm(), quick(method="linear")).own_norm is False
