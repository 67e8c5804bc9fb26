"""Learned selections: piggyback and `packnet --pick` train bits, never the weights of others."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from masks_store import InvalidInput, norm_modules, packable
from trainer.freeze import freeze
from trainer.methods import METHODS
from trainer.phase import Phase
from trainer.pipeline import train
from trainer.plan import make_fabric, seeded
from trainer.selecting import (
    START,
    THRESHOLD,
    add_masks,
    real_masks,
    select,
    selected_weights,
    shown,
    too_few_steps,
)
from trainer.small_maps import SmallMaps
from trainer.step import make_gear, train_step

from ..reference import piggyback as twin
from .rig import (
    CPU,
    Kept,
    bare_ground,
    loop_for,
    new_store,
    plan_for,
    quick,
    state_bits,
    trained_and_exported,
)

FORMATS = [torch.contiguous_format, torch.channels_last]
PIGGYBACK = {"method": "piggyback", "lr": 1e-2}
PICK = {"pick": True, "lr": 5e-2}


def _batch(seed: int, memory_format=torch.contiguous_format):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, generator=random).contiguous(memory_format=memory_format)
    return images, torch.randint(3, (6,), generator=random)


# ---------------------------------------------------------------- the mask itself


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_hidden_weight_is_plus_zero_whatever_it_is(value):
    weight = torch.tensor([value, -2.0, value, 3.0])
    chosen = select(weight, torch.tensor([0.0, 1.0, THRESHOLD, START]))
    assert state_bits({"": chosen}) == state_bits({"": torch.tensor([0.0, -2.0, 0.0, 3.0])})


def _flip_some(network, seed: int = 3) -> None:
    """Masks as they may be in the middle of a run: a third of the bits off."""
    random = torch.Generator().manual_seed(seed)
    for mask in real_masks(network.body).values():
        with torch.no_grad():
            mask.copy_(torch.rand(mask.shape, generator=random) * 3 * THRESHOLD)


def _gradients_of_the_twin(network, images, labels, memory_format):
    """Name -> gradient of the real-valued mask: an ordinary network of the effective weights, then entry by entry."""
    real = {name: mask.detach().flatten().tolist() for name, mask in real_masks(network.body).items()}
    weights = {name: network.body.get_parameter(name).detach().flatten().tolist() for name in real}
    plain = bare_ground(keep=0.5).backbone.body().to(memory_format=memory_format)
    for name, parameter in packable(plain).items():
        values = torch.tensor(twin.effective(weights[name], real[name])).reshape(parameter.shape)
        with torch.no_grad():
            parameter.copy_(values)
        parameter.requires_grad_(True)
    head = copy.deepcopy(network.head).requires_grad_(True)
    head.zero_grad()
    with SmallMaps():  # the same arithmetic, to be compared bit for bit
        F.cross_entropy(head(plain(images)), labels).backward()
    flat = {name: parameter.grad.flatten().tolist() for name, parameter in packable(plain).items()}
    return {name: twin.straight_through(weights[name], flat[name]) for name in flat}, head


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_masks_gradients_are_those_of_the_straight_through_twin(ground, source, memory_format):
    loop = loop_for(ground, source, quick(norm="shared", **PIGGYBACK), layout=memory_format)
    network = loop.network.train()
    freeze(network, loop.method.enter(ground, loop.plan, loop.plan.phases[0], network, None))
    _flip_some(network)
    images, labels = _batch(0, memory_format)
    F.cross_entropy(network(images), labels).backward()
    expected, _ = _gradients_of_the_twin(network, images, labels, memory_format)
    for name, mask in real_masks(network.body).items():
        assert torch.equal(mask.grad.flatten(), torch.tensor(expected[name])), name
        assert bool(mask.grad.any())
        assert network.body.get_parameter(name).grad is None, "the weight is fixed"


def test_a_run_of_steps_is_the_twins(ground, source):
    published = quick(recipe="paper", **PIGGYBACK)  # one learning rate for all
    loop = loop_for(ground, source, published, layout=torch.contiguous_format)
    network, phase = loop.network.train(), loop.plan.phases[0]
    trainable = loop.method.enter(ground, loop.plan, phase, network, None)
    ours, theirs = network, copy.deepcopy(network)  # both begin alike
    gear = make_gear(make_fabric("32-true", CPU), ours, phase, trainable)
    parts = {**real_masks(theirs.body), "head.weight": theirs.head.weight, "head.bias": theirs.head.bias}
    adams = {name: twin.Adam(part.numel(), 1e-3) for name, part in parts.items()}
    for step in range(8):
        images, labels = _batch(step)
        train_step(loop.fabric, gear, phase, 1e-3, F.cross_entropy(gear.model(images), labels))
        gradients, head = _gradients_of_the_twin(theirs, images, labels, torch.contiguous_format)
        gradients |= {f"head.{name}": p.grad.flatten().tolist() for name, p in head.named_parameters()}
        for name, part in parts.items():
            moved = adams[name].step(part.detach().flatten().tolist(), gradients[name])
            with torch.no_grad():
                part.copy_(torch.tensor(moved).reshape(part.shape))
    for name, mask in real_masks(theirs.body).items():
        assert torch.allclose(real_masks(ours.body)[name], mask, atol=2e-5), name
        assert bool((mask <= THRESHOLD).any()), "some bits should have gone"
    assert torch.allclose(ours.head.weight, theirs.head.weight, atol=2e-5)


def test_a_claims_weights_get_their_own_gradient_where_they_are_in_sight():
    weight = torch.tensor([2.0, -3.0, 5.0], requires_grad=True)
    mask = torch.tensor([1.0, 0.0, 1.0], requires_grad=True)
    select(weight, mask).backward(torch.tensor([7.0, 11.0, 13.0]))
    assert weight.grad.tolist() == [7.0, 0.0, 13.0]
    assert mask.grad.tolist() == [14.0, -33.0, 65.0]
    (spoilt,) = torch.autograd.grad(select(weight, mask), weight, torch.tensor([7.0, float("inf"), 13.0]))
    assert spoilt.tolist() == [7.0, 0.0, 13.0], "chosen by position: a product would give NaN"


def test_masks_survive_deepcopy_and_load_state_dict_and_keep_their_memory_format(ground, source):
    loop = loop_for(ground, source, quick(**PIGGYBACK))
    assert {name for name, _ in loop.network.named_parameters() if name.endswith("real_mask")} == {
        f"body.{name.removesuffix('weight')}real_mask" for name in ground.backbone.kept
    }
    _flip_some(loop.network)
    twin_of, loaded = copy.deepcopy(loop.network), loop_for(ground, source, quick(**PIGGYBACK)).network
    loaded.load_state_dict(loop.network.state_dict())
    images, _ = _batch(1, torch.channels_last)
    expected = loop.network.eval()(images)
    for network in (twin_of, loaded):
        assert torch.equal(network.eval()(images), expected)
        for name, mask in real_masks(network.body).items():
            assert mask.stride() == network.body.get_parameter(name).stride(), name
    assert not torch.equal(loop_for(ground, source, quick(**PIGGYBACK)).network.eval()(images), expected)


# ---------------------------------------------------------------- METHODS §0: frozen means bit-identical


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("optimizer", "memory_format"), [("adam", FORMATS[1]), ("adamw", FORMATS[0])])
def test_piggyback_moves_no_weight_of_the_base_at_any_step(ground, source, optimizer, memory_format, precision):
    settings = quick(optimizer=optimizer, weight_decay=1e-2, precision=precision, epochs=1, norm="shared", **PIGGYBACK)
    steps = 0

    def look() -> bool:
        nonlocal steps
        steps += 1
        state = {n.removeprefix("body."): t for n, t in loop.network.state_dict().items() if n.startswith("body.")}
        base = {name: state[name] for name in ground.backbone.tensors}
        assert state_bits(base) == state_bits(ground.backbone.tensors)
        for name, mask in real_masks(loop.network.body).items():
            unowned = mask.detach().contiguous()[~ground.backbone.kept[name]]
            assert state_bits({"": unowned}) == state_bits({"": torch.full_like(unowned, START)})
        return False

    keeper = dataclasses.replace(Kept().keeper(), stop=look)
    loop = loop_for(ground, source, settings, keeper=keeper, layout=memory_format)
    with seeded(loop.plan, CPU):
        loop.run()
    assert steps == 6 + 1, "each step, and the validation"
    assert any(bool((mask <= THRESHOLD).any()) for mask in real_masks(loop.network.body).values())


@pytest.mark.parametrize("memory_format", FORMATS)
def test_picks_train_with_the_claim_then_stay_and_move_no_weight_of_the_lineage(ground, source, memory_format):
    kept = ground.backbone.kept
    during: list[dict[str, bytes]] = []

    def look() -> bool:
        for name, mask in kept.items():
            weight = loop.network.body.get_parameter(name).detach().contiguous()
            assert state_bits({"": weight[mask]}) == state_bits({"": ground.backbone.tensors[name][mask]})
        during.append(state_bits(shown(loop.network.body)))
        return False

    keeper = dataclasses.replace(Kept().keeper(), stop=look)
    settings = quick(weight_decay=1e-2, prune=0.5, **PICK)
    loop = loop_for(ground, source, settings, keeper=keeper, layout=memory_format)
    with seeded(loop.plan, CPU):
        loop.run()
    assert len(during) == 14 + 7, "three epochs: each step, and the validation"
    assert during[0] != during[13], "the picks train in the first phase"
    assert all(later == during[14] for later in during[14:]), "and are fixed in the second"
    for name, seen in shown(loop.network.body).items():
        assert bool(seen[~kept[name]].all()), "what the task claims is in sight"


# ---------------------------------------------------------------- what is exported


@pytest.mark.parametrize(("norm", "dtype"), [("auto", "f32"), ("shared", "bf16")])
def test_piggyback_exports_one_bit_a_weight_and_what_it_was_verified_with(ground, source, norm, dtype):
    _, trained, exported = trained_and_exported(ground, source, quick(norm=norm, value_dtype=dtype, **PIGGYBACK))
    artifact, body = exported.artifact, trained.network.body
    kinds = {name.partition("/")[0] for name in artifact.tensors if "/" in name}
    assert kinds == ({"mask", "norm"} if norm == "auto" else {"mask"})
    assert len(artifact.of_kind("norm")) == (4 * len(norm_modules(body)) if norm == "auto" else 0)
    assert artifact.manifest.claims == {}
    hidden = 0
    for name, mask in shown(body).items():
        seen = mask & ground.backbone.kept[name]
        info = artifact.manifest.masks[f"mask/{name}"]
        assert (info.bits, info.ones) == (seen.numel(), int(seen.sum()))
        weight = torch.where(seen, ground.backbone.tensors[name], 0.0)
        assert state_bits({"": exported.view.weights[name]}) == state_bits({"": weight})
        assert state_bits({"": selected_weights(body)[name]}) == state_bits({"": weight})
        hidden += int((ground.backbone.kept[name] & ~mask).sum())
    assert hidden > 100


def test_picks_are_exported_beside_the_claim_as_they_were_verified(ground, source):
    _, trained, exported = trained_and_exported(ground, source, quick(value_dtype="f32", **PICK))
    artifact = exported.artifact
    assert artifact.manifest.selections.keys() == {f"pick/{name}" for name in ground.backbone.kept}
    plain = trained_and_exported(ground, source, quick(lr=5e-2, optimizer="adam"))[2].artifact
    assert plain.manifest.selections == {}
    for name, kept in ground.backbone.kept.items():
        pick, claim = artifact.manifest.masks[f"pick/{name}"], artifact.manifest.masks[f"mask/{name}"]
        assert pick.bits == int(kept.sum())
        assert pick.ones < pick.bits
        assert (claim.bits, claim.ones) == tuple(
            getattr(plain.manifest.masks[f"mask/{name}"], field) for field in ("bits", "ones")
        )
        computed = selected_weights(trained.network.body)[name]
        assert state_bits({"": exported.view.weights[name]}) == state_bits({"": computed})


def test_values_beside_picks_are_rounded_before_they_are_measured(ground, source):
    _, _, exported = trained_and_exported(ground, source, quick(value_dtype="bf16", **PICK))
    for name in ground.backbone.kept:
        weights = exported.view.weights[name]
        claimed = weights[~ground.backbone.kept[name]]
        assert torch.equal(claimed, claimed.bfloat16().float())
        assert exported.artifact.tensors[f"value/{name}"].dtype == torch.bfloat16


@pytest.mark.parametrize("fields", [PIGGYBACK, PICK], ids=["piggyback", "pick"])
def test_a_report_counts_what_a_bitmask_hides(fields, tmp_path, data):
    with new_store(tmp_path / "store") as store:
        report = train(store, "shapes", data, quick(**fields))
        shown_to, kept = store.view(report.version).weights, store.backbone.kept
        claim = store.claim(report.version)
        hidden = sum(
            int((kept[name] & (shown_to[name] == 0) & (store.backbone.tensors[name] != 0)).sum()) for name in kept
        )
        assert report.hidden == hidden > 100
        assert not any(bool((claim[name] & kept[name]).any()) for name in claim)
        assert train(store, "plain", data, quick(optimizer="adam", lr=5e-2)).hidden is None


@pytest.mark.parametrize("fields", [{"method": "piggyback"}, {"pick": True}])
def test_too_few_steps_for_a_bitmask_are_told_before_they_are_taken(fields, tmp_path, data):
    with new_store(tmp_path / "store") as store:
        short = train(store, "shapes", data, quick(epochs=1, dry_run=True, **fields))
        (warning,) = short.warnings
        assert "its bitmask will hide next to nothing" in warning
        assert "0.005 in one direction hide a weight; give more --epochs or a higher --lr" in warning
        assert train(store, "shapes", data, quick(epochs=1000, dry_run=True, **fields)).warnings == ()
        assert train(store, "shapes", data, quick(epochs=1, dry_run=True)).warnings == ()


def test_what_masks_can_reach_is_the_sum_of_their_learning_rates():
    """1,000 steps of 2e-5 are four times the way from 1e-2 to 5e-3."""
    assert too_few_steps(Phase("train", 10, 1e-4, "constant", "adam", mask_factor=0.2), 100) is None
    text = too_few_steps(Phase("train", 10, 1e-4, "constant", "adam", mask_factor=0.19), 100)
    assert text is not None
    assert "1,000 steps move an entry by 0.019 at most" in text


def test_a_founding_claim_has_nothing_to_pick_from(source):
    _, trained, exported = trained_and_exported(bare_ground(keep=0.0), source, quick(**PICK))
    assert exported.artifact.manifest.selections == {}
    assert real_masks(trained.network.body) == {}


# ---------------------------------------------------------------- recipes and refusals


def test_piggyback_has_the_published_recipe(ground, source):
    paper = {"method": "piggyback", "recipe": "paper", "epochs": None, "batch_size": None}
    plan = plan_for(ground, source, quick(**paper))
    (phase,) = plan.phases
    assert (phase.optimizer, phase.lr, phase.epochs, phase.schedule) == ("adam", 1e-4, 30, "half")
    assert (plan.batch_size, plan.own_norm, plan.prune, phase.mask_factor) == (32, False, None, 1.0)
    assert plan_for(ground, source, quick(**paper, norm="own")).own_norm is True


def test_piggybacks_own_recipe_has_an_own_norm_and_a_faster_head_than_masks(ground, source):
    best = {"method": "piggyback", "epochs": None}
    plan = plan_for(ground, source, quick(**best))
    (phase,) = plan.phases
    assert (phase.lr, phase.epochs, phase.schedule, phase.mask_factor) == (1e-3, 30, "cosine", 0.3)
    assert plan.own_norm is True
    assert plan_for(ground, source, quick(**best, norm="shared")).own_norm is False


def test_picks_train_at_piggybacks_rate_unless_told_otherwise(ground, source):
    train_phase, retrain = plan_for(ground, source, quick(pick=True)).phases
    assert train_phase.optimizer == retrain.optimizer == "adam"
    assert {phase.mask_factor for phase in plan_for(ground, source, quick()).phases} == {1.0}, "no masks, no rate"
    (alone,) = plan_for(ground, source, quick(method="piggyback")).phases
    assert train_phase.lr * train_phase.mask_factor == pytest.approx(alone.lr * alone.mask_factor)
    loop = loop_for(ground, source, quick(pick=True))
    trainable = loop.method.enter(ground, loop.plan, train_phase, loop.network, None)
    gear = make_gear(loop.fabric, loop.network, train_phase, trainable)
    images, labels = _batch(0)
    train_step(loop.fabric, gear, train_phase, 0.5, F.cross_entropy(gear.model(images), labels))
    rates = {id(p): group["lr"] for group in gear.optimizer.param_groups for p in group["params"]}
    for name, parameter in gear.parameters.items():
        assert rates[id(parameter)] == (0.5 * train_phase.mask_factor if name.endswith("real_mask") else 0.5)


@pytest.mark.parametrize("fields", [{"method": "piggyback"}, {"pick": True}])
def test_sgd_is_refused_for_masks_that_it_would_not_move(ground, fields):
    with pytest.raises(InvalidInput, match=r"--optimizer sgd does not go with (piggyback|--pick).*adam"):
        METHODS[quick(**fields).method].choose(ground, quick(optimizer="sgd", **fields))


def test_an_own_norm_is_refused_where_the_backbone_has_none_and_else_left_out(ground):
    manifest = ground.backbone.manifest.model_copy(update={"arch": "vgg11", "arch_args": {}})
    bare = dataclasses.replace(ground, backbone=dataclasses.replace(ground.backbone, manifest=manifest))
    piggyback = METHODS["piggyback"]
    assert piggyback.choose(bare, quick(method="piggyback")).own_norm is False
    with pytest.raises(InvalidInput, match="vgg11 has no BatchNorm"):
        piggyback.choose(bare, quick(method="piggyback", norm="own"))


def test_every_linear_layer_and_convolution_of_a_network_gets_a_mask():
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    add_masks(body)
    assert set(real_masks(body)) == {"0.weight", "2.weight"}
    assert all(bool(mask.all()) for mask in shown(body).values())


# ---------------------------------------------------------------- whole runs


def test_no_earlier_task_changes_by_a_bit_and_children_choose_anew(tmp_path, data, other):
    store = new_store(tmp_path / "store", keep=0.0)
    with pytest.raises(InvalidInput, match=r"piggyback needs a task to stand on.*--on TASK"):
        train(store, "wings", data, quick(method="piggyback"))
    digests: dict[str, str] = {}
    runs = [
        ("one", data, {}),
        ("two", other, {**PICK, "weight_decay": 1e-2}),
        ("wings", data, {**PIGGYBACK, "on": "two"}),
        ("head", other, {"method": "linear", "on": "wings"}),
        ("three", other, {"on": "two"}),
        ("four", data, {**PICK, "on": "wings", "value_dtype": "bf16"}),
    ]
    for task, source, fields in runs:
        report = train(store, task, source, quick(epochs=1, **fields))
        assert (report.changed_bits, report.compared) == (0, len(digests))
        digests[task] = report.version
    assert store.verify() == []
    two, three = (store.view(digests[task]) for task in ("two", "three"))
    hidden = 0
    for name, claim in store.claim(digests["one"]).items():
        own = store.view(digests["one"]).weights[name]
        assert state_bits({"": three.weights[name][claim]}) == state_bits({"": own[claim]}), "it sees all of one again"
        hidden += int((two.weights[name][claim] == 0).sum())
    assert hidden > 0
    assert store.view(digests["head"]).weights_key == digests["wings"]
    assert not store.claim(digests["wings"])


def test_piggyback_takes_no_weights_and_needs_no_reservation(tmp_path, data):
    store = new_store(tmp_path / "store")
    left = store.capacity_left()
    with store.reserve("train elsewhere"):
        report = train(store, "wings", data, quick(epochs=1, **PIGGYBACK))
    assert (report.claimed, report.tasks_left, report.parent) == (0, None, None)
    assert store.capacity_left() == left
