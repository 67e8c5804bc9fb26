"""CLNP: what trains, what stays to the last bit, how units are chosen, and what a chain of tasks leaves."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from masks_store import (
    InvalidInput,
    OutOfCapacity,
    Store,
    active,
    between,
    bind,
    create,
    cut_view,
    decode_units,
    gate,
    networks,
    normalise,
    read_backbone,
    state_of,
    thresholds,
    unit_graph,
    units_of,
    view_of,
)
from trainer.backbone import init
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.cli import summary
from trainer.config import check_settings
from trainer.data import load_source
from trainer.evaluate import evaluate
from trainer.interrupt import Interrupted
from trainer.loop import Loop
from trainer.measure import network_of, score, served_network
from trainer.methods import METHODS
from trainer.pipeline import train
from trainer.plan import make_fabric, make_plan, seeded
from trainer.progress import Lines, Silent
from trainer.sparsify import Bench, Candidate, activities, estimate, kept_of, sparsify
from trainer.unit_network import ChoosingNorm, UnitNetwork

from ..tiny import TINY, with_head
from ..zoo import task as random_task
from .rig import CPU, SIZE, Kept, ground_in, loop_for, quick, read, shapes, state_bits

ARCHS = {"tinyresnet": {"width": 6, "blocks": [1, 1]}, "mlp-16-12": None, "widecnn": None}


def settings(**changes: object):
    return quick(**{"method": "clnp", "epochs": 1, "lr": 5e-3, "margin": 5.0, **changes})


def unit_store(path, arch: str = "tinyresnet") -> Store:
    return Store.create(path, create(arch, image_size=SIZE, keep=0.0, arch_args=ARCHS[arch]), capacity="units")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return [shapes(folder / f"{seed}.npz", seed=seed, train=40, val=20, test=6) for seed in range(3)]


@pytest.fixture(scope="module")
def founded(tmp_path_factory, data):
    """A store of a tinyresnet with one task."""
    store = unit_store(tmp_path_factory.mktemp("founded") / "store")
    train(store, "first", data[0], settings(epochs=2, margin=20.0))
    return store


def network_in(store: Store, source: str, **changes: object) -> tuple[UnitNetwork, Loop]:
    chosen = settings(**changes)
    ground = ground_in(store, chosen)
    loop = loop_for(ground, read(source, ground), chosen)
    assert isinstance(loop.network, UnitNetwork)
    return loop.network, loop


def unit_network(body: torch.nn.Module) -> UnitNetwork:
    """A body with random weights and norms under a head, all of whose units are free."""
    found = unit_graph(body, "tiny")
    free = {group: torch.ones(size, dtype=torch.bool) for group, size in found.sizes.items()}
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, 3, SIZE, SIZE)).shape[1]
    return UnitNetwork(body, features, 3, found, {group: ~mask for group, mask in free.items()}, free).eval()


def bench_of(loop: Loop) -> Bench:
    return Bench(loop.source, loop.ground.backbone.manifest.preprocess, CPU, 0)


# ---------------------------------------------------------------- the norm that chooses


def test_a_free_channel_is_normalised_by_its_batch_and_any_other_by_its_running_statistics():
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(4)
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    free = torch.tensor([True, False, True, False])
    norm = ChoosingNorm(plain, free).train()
    x = torch.randn(5, 4, 3, 3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    got = norm(x)
    fresh = torch.nn.BatchNorm2d(4)
    fresh.load_state_dict(plain.state_dict())
    expected_free, expected_settled = fresh.train()(x), plain.eval()(x)
    assert torch.equal(got[:, free], expected_free[:, free])
    assert torch.allclose(got[:, ~free], expected_settled[:, ~free], atol=1e-6)
    for name in ("running_mean", "running_var"):
        now = norm.state_dict()[name]
        assert torch.equal(now[free], fresh.state_dict()[name][free])
        assert now[~free].numpy().tobytes() == before[name][~free].numpy().tobytes()
    assert torch.equal(norm.eval()(x), F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def test_a_settled_channel_whose_batch_overflows_is_what_it_is_in_evaluation():
    """Chosen by position: a product would bring in the NaN of the batch statistics that this channel does not use."""
    norm = ChoosingNorm(torch.nn.BatchNorm2d(2), torch.tensor([True, False]))
    x = torch.randn(4, 2, 2, 2)
    x[:, 1] = 3e38
    settled = norm.eval()(x)[:, 1]
    assert bool(settled.isfinite().all())
    assert torch.equal(norm.train()(x)[:, 1], settled)
    assert torch.equal(norm.running_var[1], torch.tensor(1.0))


def test_its_gradients_are_those_of_the_norm_that_each_channel_has():
    torch.manual_seed(1)
    norm = ChoosingNorm(torch.nn.BatchNorm2d(2), torch.tensor([True, False])).train()
    x = torch.randn(4, 2, 2, 2, requires_grad=True)
    (norm(x) ** 3).sum().backward()
    twin = x.detach().clone().requires_grad_()
    fresh = (twin[:, :1] - twin[:, :1].mean((0, 2, 3), keepdim=True)) / (
        twin[:, :1].var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    settled = twin[:, 1:] / math.sqrt(1 + 1e-5)
    (torch.cat([fresh, settled], 1) ** 3).sum().backward()
    assert torch.allclose(x.grad, twin.grad, atol=1e-4)


# ---------------------------------------------------------------- what trains


def test_the_start_is_the_lineage_and_fresh_free_units_that_nothing_of_the_lineage_reads(founded, data):
    network, loop = network_in(founded, data[1])
    state = network.body.state_dict()
    stored = view_of(founded.backbone, loop.ground.lineage)
    graph = network.graph
    owned = units_of(graph, loop.ground.claims[0])
    assert {g: m.tolist() for g, m in network.lineage.items()} == {g: m.tolist() for g, m in owned.items()}
    base = between(graph, state, owned, owned)
    for name, mask in base.items():
        assert torch.equal(state[name][mask], stored.weights[name][mask])
        interfering = between(graph, state, owned, network.free)[name] & ~mask
        assert not state[name][interfering].any(), "from a free unit to one of the lineage"
        drawn = between(graph, state, network.free, network.seen)[name]
        if bool(drawn.any()):
            fan = drawn[0].numel()
            assert float(state[name][drawn].std()) == pytest.approx((2 / fan) ** 0.5, rel=0.35), name
    for norm, group in graph.norms.items():
        free = network.free[group]
        assert torch.equal(state[f"{norm}.weight"][free], torch.ones(int(free.sum())))
        assert not state[f"{norm}.bias"][free].any()


@pytest.mark.parametrize(
    ("optimizer", "decay"), [("sgd", 0.1), ("adam", 0.1), ("adamw", 0.5)], ids=["sgd", "adam", "adamw"]
)
def test_no_bit_of_the_lineage_moves_while_a_task_trains(founded, data, optimizer, decay):
    network, loop = network_in(founded, data[1], optimizer=optimizer, weight_decay=decay, l1=1e-2)
    before = {name: tensor.clone() for name, tensor in network.body.state_dict().items()}
    loop.method.enter(loop.ground, loop.plan, loop.plan.phases[0], network, None)
    trainable = loop.method.enter(loop.ground, loop.plan, loop.plan.phases[0], network, None)
    loop.trainable = trainable
    with seeded(loop.plan, CPU):
        loop._phase(loop.plan.phases[0], None)
    after, moved = network.body.state_dict(), 0
    for name, tensor in after.items():
        module, _, field = name.rpartition(".")
        if field in ("running_mean", "running_var"):
            mask = network.free[network.graph.norms[module]]
        elif f"body.{name}" in trainable:
            mask = trainable[f"body.{name}"]
            assert mask is not None
        else:
            continue
        assert state_bits({"": tensor[~mask]}) == state_bits({"": before[name][~mask]}), name
        moved += int((tensor[mask] != before[name][mask]).sum())
    assert moved > 1000


def test_l1_is_on_scale_and_shift_where_a_norm_follows_and_on_weights_and_biases_elsewhere(tmp_path, data):
    spares = (
        METHODS["clnp"].choose(ground_in(unit_store(tmp_path / "r"), settings()), settings()).phases[0].lasso_spares
    )
    assert "body.layers.1.0.shortcut.0.weight" in spares
    assert not any("bn" in name for name in spares)
    store = unit_store(tmp_path / "m", "mlp-16-12")
    phases = METHODS["clnp"].choose(ground_in(store, settings()), settings()).phases
    assert (phases[0].lasso, phases[0].lasso_spares, phases[1].lasso) == (1e-5, (), 0.0)


def test_a_strong_l1_leaves_fewer_units_active(tmp_path, data):
    """Smaller weights, then units that hardly fire, then units that the scan takes away at no cost."""
    sizes, quiet, kept, accuracies = [], [], [], []
    for number, l1 in enumerate((0.0, 0.03)):
        store = unit_store(tmp_path / f"s{number}", "mlp-16-12")
        chosen = settings(l1=l1, epochs=40, margin=0.0, optimizer="sgd", lr=0.05)
        network, loop = network_in(store, data[0], **vars(chosen))
        with seeded(loop.plan, CPU):
            loop._phase(loop.plan.phases[0], None)
        found = activities(network, bench_of(loop))
        quiet.append(sum(int((values < 0.01 * values.max()).sum()) for values in found.values()))
        report = train(store, "shapes", data[0], chosen)
        sizes.append(float(store.view(report.version).weights["fc1.weight"].abs().sum()))
        kept.append(sum(use.new for use in report.units))
        accuracies.append(report.val_top1)
    assert sizes[1] < 0.2 * sizes[0]
    assert quiet[1] >= quiet[0] + 8, "of 28"
    assert kept[1] < kept[0]
    assert kept[1] <= 28 - quiet[1], "the scan gates the quiet ones"
    assert accuracies[1] >= 0.8, "and not because nothing was learnt"


# ---------------------------------------------------------------- activity and the scan


@pytest.mark.parametrize("arch", ARCHS)
def test_activity_is_the_mean_behind_the_relu_over_pictures_and_positions_the_largest_of_a_group(tmp_path, data, arch):
    network, loop = network_in(unit_store(tmp_path / "s", arch), data[0])
    found = activities(network, bench_of(loop))
    split, preprocess = loop.source.splits["train"], loop.ground.backbone.manifest.preprocess
    squares = torch.from_numpy(split.squares(range(len(split)), preprocess).transpose(0, 3, 1, 2).copy())
    x = normalise(squares, preprocess)
    body = network.body.eval()

    def mean(values):
        return values.double().mean([d for d in range(values.dim()) if d != 1])

    with torch.no_grad():
        if arch == "tinyresnet":
            stem = F.relu(body.bn1(body.conv1(x)))
            block = body.layers[0][0]
            inner = F.relu(block.bn1(block.conv1(stem)))
            expected = {"conv1": torch.maximum(mean(stem), mean(block(stem))), "layers.0.0.conv1": mean(inner)}
        else:
            first = "fc1" if arch.startswith("mlp") else "conv1"
            x = x.flatten(1) if first == "fc1" else x
            expected = {first: mean(F.relu(body.get_submodule(first)(x)))}
    for group, values in expected.items():
        assert torch.allclose(found[group], values, rtol=1e-5, atol=1e-7), group
    assert found.keys() == network.graph.sizes.keys()


def test_the_scan_keeps_the_last_candidate_before_the_first_that_costs_more_than_the_margin(tmp_path, data):
    network, loop = network_in(unit_store(tmp_path / "s", "mlp-16-12"), data[0], epochs=6)
    with seeded(loop.plan, CPU):
        loop._phase(loop.plan.phases[0], None)
    bench, margin = bench_of(loop), 11.0
    network.eval()
    dense = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    activity, seen = activities(network, bench), network.seen

    def top1(units):
        network.use(units, dense)
        return score(network, loop.source.splits["val"], bench.preprocess, CPU, 0).top1

    best, expected = top1(seen), seen
    tried = [Candidate(None, best, 28, accepted=True)]
    for threshold in thresholds(activity, seen):
        units = active(activity, threshold, seen)
        found, count = top1(units), sum(int(mask.sum()) for mask in units.values())
        tried.append(Candidate(threshold, found, count, accepted=100 * (best - found) <= margin))
        if not tried[-1].accepted:
            break
        expected = units
    network.load_state_dict(dense)
    scan = sparsify(network, bench, margin)
    assert scan == tuple(tried)
    assert [candidate.accepted for candidate in scan] == [True] * (len(scan) - 1) + [False]
    assert kept_of(scan).units == sum(int(mask.sum()) for mask in network.used.values())
    assert {g: m.tolist() for g, m in network.used.items()} == {g: m.tolist() for g, m in expected.items()}
    columns = network.graph.features_of(network.used, network.head.in_features)
    assert not network.head.weight.detach()[:, ~columns].view(torch.int32).any(), "+0.0 outside the units in use"
    gated = sum(int((~mask).sum()) for mask in network.used.values())
    assert 0 < gated < 28
    images = torch.randn(3, 3, SIZE, SIZE)
    features = network.body(images)
    assert state_bits({"": features[:, ~network.used["fc2"]]}) == state_bits(
        {"": torch.zeros(3, int((~network.used["fc2"]).sum()))}
    )


@pytest.mark.parametrize("arch", ["mlp-16-12", "widecnn", "tinyresnet"])
def test_the_cut_network_answers_as_the_gated_one(tmp_path, data, arch):
    network, _ = network_in(unit_store(tmp_path / "s", arch), data[0])
    network.eval()
    torch.manual_seed(0)
    half = {group: torch.rand(len(mask)) < 0.5 for group, mask in network.seen.items()}
    network.use(half, {name: tensor.clone() for name, tensor in network.state_dict().items()})
    images = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(network.cut()(images), network(images), atol=1e-5)
    weights = sum(tensor.numel() for name, tensor in network.cut()._state.items() if name.endswith("weight"))
    assert weights < 0.75 * sum(p.numel() for p in network.body.parameters() if p.dim() > 1)


@pytest.mark.parametrize("body", TINY.values(), ids=TINY)
def test_a_vgg_and_bottlenecks_cut_to_half_of_their_units_answer_as_gated(body):
    """As in the networks of torchvision that are too large for a test: only the channels are fewer."""
    network = unit_network(body())
    half = {group: torch.arange(len(mask)) % 2 == 0 for group, mask in network.seen.items()}
    network.use(half, {name: tensor.clone() for name, tensor in network.state_dict().items()})
    images = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        gated, small = network(images), network.cut()
        assert torch.allclose(small(images), gated, atol=1e-5)
        whole = unit_network(body())(images)
    assert not torch.allclose(gated, whole, atol=1e-2), "the gate takes something away"
    for name, layer in network.graph.layers.items():
        rows, columns = small._state[f"{name}.weight"].shape[:2]
        assert rows == int(half[layer.group].sum())
        assert columns == (3 if layer.reads is None else layer.spread * int(half[layer.reads].sum()))


@pytest.mark.parametrize(("kind", "arch"), [("vgg", "vgg11"), ("vgg_bn", "vgg11_bn"), ("bottlenecks", "resnet50")])
def test_a_vgg_and_bottlenecks_learn_task_after_task_and_lose_no_bit(tmp_path, data, monkeypatch, kind, arch):
    """The whole run, in networks whose only difference from torchvision's is how few channels they have."""
    monkeypatch.setattr(networks, "whole_network", lambda _arch, **_: with_head(kind))
    images = torch.randn(4, 3, SIZE, SIZE)
    with Store.create(tmp_path / "s", create(arch, image_size=SIZE, keep=0.0), capacity="units") as store:
        first = train(store, "one", data[0], settings(epochs=3, finetune=True))
        before = state_bits({"": network_of(store.backbone, store.view(first.version))(images)})
        second = train(store, "two", data[1], settings(epochs=3, finetune=True))
        assert state_bits({"": network_of(store.backbone, store.view(first.version))(images)}) == before
        assert (second.compared, second.changed_bits, store.verify()) == (1, 0, [])
        for one, two in zip(first.units, second.units, strict=True):
            assert one.new + one.free == one.units
            assert two.free == one.free - two.new
            assert two.reused <= one.new
        for version in (first.version, second.version):
            view = store.view(version)
            small, whole = (make(store.backbone, view) for make in (served_network, network_of))
            torch.testing.assert_close(small(images), whole(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["mlp-16-12", "tinyresnet", "widecnn"])
def test_what_is_timed_is_the_smaller_network_that_a_server_runs(tmp_path, arch):
    with unit_store(tmp_path / "store", arch) as store:
        version = store.register(random_task(store.backbone, "half", "clnp", share=0.5), label="stable").version.version
        view, images = store.view(version), torch.randn(4, 3, SIZE, SIZE)
        small, whole = (make(store.backbone, view) for make in (served_network, network_of))
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (small, whole)]
        assert sizes[0] < 0.75 * sizes[1]
        torch.testing.assert_close(small(images), whole(images), rtol=1e-4, atol=1e-4)


def test_only_the_statistics_of_new_units_are_estimated_anew(founded, data):
    network, loop = network_in(founded, data[1])
    network.use(network.seen, {name: t.clone() for name, t in network.state_dict().items()})
    before = {name: tensor.clone() for name, tensor in network.body.state_dict().items()}
    estimate(network, bench_of(loop))
    split, preprocess = loop.source.splits["train"], loop.ground.backbone.manifest.preprocess
    x = normalise(torch.from_numpy(split.squares(range(40), preprocess).transpose(0, 3, 1, 2).copy()), preprocess)
    with torch.no_grad():
        stem = network.body.conv1(x)
    free = network.new["conv1"]
    assert bool(free.any())
    assert bool((~free).any())
    now = network.body.state_dict()
    assert torch.allclose(now["bn1.running_mean"][free], stem.mean((0, 2, 3))[free], atol=1e-5)
    assert torch.allclose(now["bn1.running_var"][free], stem.var((0, 2, 3))[free], rtol=1e-4)
    for norm, group in network.graph.norms.items():
        for field in ("running_mean", "running_var"):
            fixed = ~network.new[group]
            name = f"{norm}.{field}"
            assert state_bits({"": now[name][fixed]}) == state_bits({"": before[name][fixed]})
    assert {n.momentum for n in network.norms.values()} == {0.1}


@pytest.mark.parametrize("leaking", [False, True])
def test_earlier_tasks_answer_with_the_same_bits_out_of_the_network_that_a_later_one_trains(tmp_path, data, leaking):
    """Their units lie beside the new ones and see its pictures in train mode, norms of the same layers included.

    The control lets all channels of every norm follow the batches, as torch's own would: then the answers move,
    though no weight, scale or shift that is not free does.
    """
    store, images = unit_store(tmp_path / "s"), torch.randn(4, 3, SIZE, SIZE)
    for number in range(2):
        train(store, f"task{number}", data[number], settings(margin=20.0))
    views = [store.view(version.version) for version in store.versions()]
    plain = store.backbone.body().eval()
    network, loop = network_in(store, data[2], optimizer="adamw", weight_decay=0.1)
    assert any(bool(mask.any()) for mask in network.free.values())
    assert len(views) == 2

    def answers() -> list[bytes]:
        """Of each earlier task, by its head and the units that it uses, from the training network as it stands."""
        state = {n: t.contiguous() for n, t in network.body.state_dict().items() if not n.endswith(".free")}
        features = [functional_call(plain, gate(network.graph, state, view.units), (images,)) for view in views]
        logits = [F.linear(x, v.overlay.head_weight, v.overlay.head_bias) for x, v in zip(features, views, strict=True)]
        return [found.detach().numpy().tobytes() for found in logits]

    before = answers()
    assert before == [bind(store.backbone, view)(images).numpy().tobytes() for view in views]
    if leaking:
        for norm in network.norms.values():
            norm.free.fill_(True)
    weights = {name: parameter.detach().clone() for name, parameter in network.body.named_parameters()}
    with seeded(loop.plan, CPU):
        loop._phase(loop.plan.phases[0], None)
    assert any(not torch.equal(parameter, weights[name]) for name, parameter in network.body.named_parameters())
    for name, parameter in network.body.named_parameters():
        still = ~loop.trainable[f"body.{name}"]
        assert torch.equal(parameter[still], weights[name][still]), name
    changed = [after != first for after, first in zip(answers(), before, strict=True)]
    assert changed == [leaking, leaking]


# ---------------------------------------------------------------- chains of tasks


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("tinyresnet", {"optimizer": "sgd", "weight_decay": 1e-2, "lr": 0.05}),
        ("mlp-16-12", {"optimizer": "adam", "weight_decay": 1e-2, "finetune": True}),
        ("widecnn", {"optimizer": "adamw", "weight_decay": 0.1, "batch_size": 40}),
        ("tinyresnet", {"finetune": True, "value_dtype": "bf16"}),
    ],
)
def test_tasks_are_packed_and_none_of_the_earlier_changes_by_a_bit(tmp_path, data, arch, changes):
    store, logits = unit_store(tmp_path / "store", arch), {}
    images = torch.randn(4, 3, SIZE, SIZE)
    for number, source in enumerate(data[:2] if arch == "widecnn" else data):
        report = train(store, f"task{number}", source, settings(margin=20.0, **changes))
        assert (report.compared, report.changed_bits) == (number, 0)
        for version, (digest, expected) in logits.items():
            assert store.artifact(version).manifest.task_digest == digest
            assert state_bits({"": bind(store.backbone, store.view(version))(images)}) == expected
        view = store.view(report.version)
        logits[report.version] = (
            store.artifact(report.version).manifest.task_digest,
            state_bits({"": bind(store.backbone, view)(images)}),
        )
        small = bind(store.backbone, cut_view(store.backbone, view))(images)
        assert torch.allclose(small, bind(store.backbone, view)(images), atol=1e-4)
        units = decode_units(store.artifact(report.version), store.backbone.units)
        for use in report.units:
            assert use.new == int(units.new[use.layer].sum())
            assert use.reused == int((units.used[use.layer] & ~units.new[use.layer]).sum())
        free = {use.layer: use.free for use in report.units}
        taken = units_of(store.backbone.units, {n: ~m for n, m in store.free_positions().items()})
        assert free == {group: int((~mask).sum()) for group, mask in taken.items()}
        assert report.tasks_left == min((use.free // use.new for use in report.units if use.new), default=None)
        if all(count == 0 for count in free.values()):
            break
    assert len(logits) >= 2
    assert store.verify() == []
    parents = [store.artifact(version).manifest.parent for version in logits]
    assert parents == [None, *list(logits)[:-1]]


def test_a_task_of_which_nothing_is_gated_registers_beside_units_that_are_anothers(tmp_path, data):
    store = unit_store(tmp_path / "store", "mlp-16-12")
    first = train(store, "first", data[0], settings(margin=20.0))
    again = train(store, "first", data[0], settings(margin=100.0, seed=1, epochs=1))
    assert store.artifact(again.version).manifest.parent == store.artifact(first.version).manifest.parent is None
    head = store.view(again.version).overlay.head_weight
    graph = store.backbone.units
    used = decode_units(store.artifact(again.version), graph).used
    columns = graph.features_of(used, head.shape[1])
    assert not bool(head[:, ~columns].any())
    assert not bool(columns.all()), "the first task's units are not seen"
    assert store.verify() == []


def test_what_is_exported_is_what_the_last_validation_measured(tmp_path, data):
    store = unit_store(tmp_path / "store")
    chosen = settings(finetune=True, epochs=2)
    ground = ground_in(store, chosen)
    kept = Kept()
    loop = loop_for(ground, read(data[0], ground), chosen, keeper=kept.keeper())
    with seeded(loop.plan, CPU):
        trained = loop.run()
    report = train(store, "shapes", data[0], chosen)
    assert isinstance(trained.network, UnitNetwork)
    view = store.view(report.version)
    state = state_of(store.backbone, view)
    for name, tensor in trained.network.body.state_dict().items():
        if not name.endswith(("num_batches_tracked", "free")):
            assert state_bits({"": tensor}) == state_bits({"": state[name]}), name
    best = max(row.val_top1 for row in trained.rows if row.phase == "finetune")
    assert report.val_top1 == best


def test_fine_tuning_trains_the_new_units_alone(founded, data):
    network, loop = network_in(founded, data[1], finetune=True)
    with seeded(loop.plan, CPU):
        loop._phase(loop.plan.phases[0], None)
    network.eval()
    half = {g: active({g: torch.arange(len(m)).double()}, len(m) / 2, {g: m})[g] for g, m in network.seen.items()}
    network.use(half, {name: t.clone() for name, t in network.state_dict().items()})
    trainable = loop.method.enter(loop.ground, loop.plan, loop.plan.phases[1], network, loop.trainable)
    graph = network.graph
    for name, mask in between(graph, network.body.state_dict() | {}, network.new, network.used).items():
        assert torch.equal(trainable[f"body.{name}"], mask)
    for norm, group in graph.norms.items():
        assert torch.equal(trainable[f"body.{norm}.weight"], network.new[group])
        assert torch.equal(network.norms[norm].free, network.new[group])


# ---------------------------------------------------------------- resuming


def test_patience_ends_training_and_fine_tuning_and_leaves_the_scan_between_them(tmp_path, data):
    store = unit_store(tmp_path / "s", "mlp-16-12")
    chosen = settings(finetune=True, epochs=20, lr=1e-12, l1=0.0, patience=1)
    stream = io.StringIO()
    report = train(store, "t", data[0], chosen, Lines(stream))
    with (Path(report.run) / "results.csv").open() as file:
        rows = [(row["phase"], int(row["epoch"])) for row in csv.DictReader(file)]
    train_rows, again = ([epoch for name, epoch in rows if name == phase] for phase in ("train", "finetune"))
    assert train_rows == [1, 2, 3], "the first is the best; then more than one that is not better"
    assert again == [0, 1, 2], "here the start is a candidate"
    assert "units stay active" in stream.getvalue()


@pytest.mark.parametrize(("arch", "finetune"), [("mlp-16-12", False), ("tinyresnet", True)])
def test_a_run_stopped_in_training_in_the_scan_or_after_it_resumes_to_the_same_bits(tmp_path, data, arch, finetune):
    store = unit_store(tmp_path / "store", arch)
    chosen = settings(finetune=finetune, epochs=2, batch_size=20, margin=3.0)
    ground = ground_in(store, chosen)
    source = read(data[0], ground)

    def run(keeper, checkpoint=None):
        loop = loop_for(ground, source, chosen, keeper=keeper)
        with seeded(loop.plan, CPU):
            return loop.run(checkpoint)

    whole = Kept()
    uninterrupted = run(whole.keeper())
    expected = state_bits(uninterrupted.network.state_dict())
    assert len(uninterrupted.scan) > 1
    steps = 4  # two epochs of two, then each candidate of the scan asks, then each step of the fine-tuning
    for stop_after in {1, steps, steps + 2, whole.steps - 1}:
        kept = Kept(stop_after)
        with pytest.raises(Interrupted):
            run(kept.keeper())
        write_checkpoint(tmp_path / "checkpoint", kept.checkpoints[-1])
        again = run(Kept().keeper(), read_checkpoint(tmp_path / "checkpoint"))
        assert state_bits(again.network.state_dict()) == expected, stop_after
        assert again.scan == uninterrupted.scan, stop_after


# ---------------------------------------------------------------- what is refused, and what stands on it


@pytest.mark.parametrize("method", ["linear", "bn", "clr"])
def test_what_takes_nothing_is_trained_on_a_clnp_task_and_sees_its_units_alone(founded, data, method):
    chosen = quick(method=method, on="first", epochs=1)
    ground = ground_in(founded, chosen, method)
    loop = loop_for(ground, read(data[2], ground), chosen, task=method)
    with seeded(loop.plan, CPU):
        trained = loop.run()
    report = train(founded, method, data[2], chosen)
    view, base = founded.view(report.version), founded.view(report.parent)
    assert view.units is not None
    assert base.units is not None
    assert all(torch.equal(mask, base.units[group]) for group, mask in view.units.items())
    assert report.val_top1 == max(row.val_top1 for row in trained.rows), "what is exported is what was validated"
    assert any(bool((~mask).any()) for mask in view.units.values()), "some units are gated"
    if method != "linear":
        moved = view.overlay.norm["bn1.weight"] != base.overlay.norm["bn1.weight"]
        assert moved.any()
        assert not moved[~view.units["conv1"]].any()
    assert evaluate(founded, method, data[2], device="cpu")[0].score.top1 == report.test_top1
    assert founded.verify() == []


def test_packnet_in_a_store_of_units_and_clnp_in_one_of_weights_are_refused_with_the_mend(tmp_path, founded, data):
    with pytest.raises(InvalidInput, match=r"packnet takes weights.*use --method clnp, or make a store"):
        train(founded, "x", data[1], quick())
    store = Store.create(tmp_path / "w", create("tinyresnet", image_size=SIZE, keep=0.0))
    with pytest.raises(InvalidInput, match=r"clnp takes units.*use --method packnet, or make.*--capacity units"):
        train(store, "x", data[1], settings())


def test_a_store_without_free_units_says_so(tmp_path, data):
    store = unit_store(tmp_path / "store", "mlp-16-12")
    train(store, "all", data[0], settings(margin=0.0, l1=0.0))
    ground = ground_in(store, settings())
    none = {name: torch.zeros_like(mask) for name, mask in ground.free.items()}
    with pytest.raises(OutOfCapacity, match="clnp has no free units here"):
        METHODS["clnp"].choose(replace(ground, free=none), settings())


def test_init_makes_a_store_of_units_and_refuses_one_that_keeps_weights(tmp_path):
    with init(tmp_path / "s", "mlp-16-12", image_size=SIZE, keep=0.0, capacity="units") as store:
        assert store.capacity == "units"
    with pytest.raises(InvalidInput, match="--capacity units needs --keep 0, not 1"):
        init(tmp_path / "t", "mlp-16-12", image_size=SIZE, capacity="units")
    with pytest.raises(InvalidInput, match="clnp does not support densenet121"):
        init(tmp_path / "u", "densenet121", image_size=32, keep=0.0, capacity="units")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "packnet", "margin": 1.0}, "--margin is what --prune auto may give up, or clnp"),
        ({"method": "clr", "finetune": True}, "--finetune is for clnp, not for clr"),
        ({"method": "linear", "l1": 0.0}, "--l1 is for clnp, not for linear"),
        ({"method": "clnp", "margin": -0.1}, "--margin -0.1 must be points of accuracy from 0 to 100"),
        ({"method": "clnp", "l1": math.nan}, "--l1 nan must be from 0 to 1"),
        ({"method": "clnp", "prune": 0.5}, "--prune is for packnet"),
        ({"method": "clnp", "recipe": "paper"}, "--recipe paper is not there for clnp: .* leave --recipe out"),
        ({"method": "clnp", "norm": "shared"}, "--norm shared does not go with clnp"),
    ],
)
def test_flags_that_do_not_go_with_the_method_are_refused(changes, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        check_settings("t", quick(**changes))
    assert len(caught.value.faults) == 1


def test_the_plan_of_a_run_holds_what_decides_its_bits(tmp_path, data):
    store = unit_store(tmp_path / "store")
    ground = ground_in(store, settings())
    source = load_source(data[0], preprocess=ground.backbone.manifest.preprocess, threads=1)
    chosen = settings(margin=None, epochs=None, lr=None)
    plan = make_plan("t", chosen, ground, METHODS["clnp"].choose(ground, chosen), source, CPU)
    assert (plan.margin, plan.prune, plan.founding, plan.own_norm) == (0.5, None, False, True)
    assert plan.free is not None
    assert [(p.name, p.epochs, p.lasso) for p in plan.phases] == [("train", 20, 1e-4), ("sparsify", 0, 0.0)]
    assert Loop(METHODS["clnp"], ground, plan, source, make_fabric("32-true", CPU), Silent(), Kept().keeper())
    assert read_backbone(store.blobs.get(store.backbone_digest)).manifest.keep == 0.0


def test_the_last_lines_speak_of_units_and_not_of_packnet(tmp_path):
    with init(tmp_path / "s", "mlp-16-12", image_size=SIZE, keep=0.0, capacity="units") as store:
        lines = list(summary(train(store, "one", shapes(tmp_path / "a.npz"), quick(method="clnp", epochs=1))))
    assert not [line for line in lines if "packnet" in line]
    assert [line for line in lines if line.startswith("units: room for")]


def test_a_run_tells_before_it_starts_what_it_takes_and_that_known_versions_keep_theirs(tmp_path, data):
    """Of 16 + 12 units; a second version finds only those that the first left, and the first keeps its own."""

    def told(task: str, **changes: object):
        stream = io.StringIO()
        report = train(store, task, data[0], settings(margin=20.0, **changes), Lines(stream))
        (line,) = [line for line in stream.getvalue().splitlines() if "free units" in line]
        return report, line

    store = unit_store(tmp_path / "s", "mlp-16-12")
    first, line = told("one")
    assert line == "trains all 28 free units (100.0 % of 28) and keeps those that stay active"
    left = 28 - sum(use.new for use in first.units)
    assert 0 < left < 28
    _, line = told("one", seed=1, dry_run=True)
    assert line.startswith(f"the versions that are there keep theirs, and this one trains all {left} free units")
    assert f"({100 * left / 28:.1f} % of 28)" in line
    _, line = told("two", dry_run=True)
    assert line.startswith(f"trains all {left} free units")
    again, _ = told("one", seed=1)
    assert (again.parent, again.changed_bits, again.compared) == (None, 0, 1)
    assert sum(use.new for use in again.units) <= left
