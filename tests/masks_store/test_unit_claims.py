"""Artifacts of clnp: what they use, add and own; every way to break one; stores of units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masks_store import (
    Artifact,
    Backbone,
    BackboneMismatch,
    ClaimOverlap,
    FormatError,
    InvalidInput,
    Store,
    bind,
    check_probe,
    claimed_values,
    create,
    cut_view,
    decode_claim,
    decode_units,
    eager_prober,
    fit_faults,
    free_positions,
    lineage_claims,
    read_artifact,
    read_backbone,
    view_of,
)
from masks_store.unit_claims import lineage_faults
from tests import zoo
from tests.masks_store import surgery

from ..reference import clnp as twin

ARGS = {"width": 4, "blocks": [1, 1]}


def empty(arch: str = "tinyresnet") -> Backbone:
    return read_backbone(create(arch, image_size=8, keep=0.0, arch_args=ARGS if arch == "tinyresnet" else None).data)


def family(shared: Backbone) -> list[Artifact]:
    """A chain of two tasks, the second on the first."""
    first = read_artifact(zoo.task(shared, "first", "clnp", share=0.4, seed=1))
    return [first, read_artifact(zoo.task(shared, "second", "clnp", ancestors=[first], share=0.5, seed=2))]


@pytest.fixture(scope="module")
def shared() -> Backbone:
    return empty()


@pytest.fixture(scope="module")
def chain(shared: Backbone) -> list[Artifact]:
    return family(shared)


# ---------------------------------------------------------------- what it means


@pytest.mark.parametrize("arch", ["tinyresnet", "mlp-6-5", "widecnn"])
def test_a_task_owns_the_rows_of_its_new_units_with_zeros_where_they_read_units_it_does_not_use(arch: str) -> None:
    shared = empty(arch)
    chain = family(shared)
    claims = lineage_claims(shared, chain)
    for artifact, claim in zip(chain, claims, strict=True):
        units = decode_units(artifact, shared.units)
        values = claimed_values(artifact, shared)
        for layer, part in shared.units.layers.items():
            rows = units.new[part.group].nonzero().flatten().tolist()
            mask = claim.get(f"{layer}.weight", torch.zeros(shared.kept[f"{layer}.weight"].shape, dtype=torch.bool))
            assert mask.flatten(1).all(1).nonzero().flatten().tolist() == rows
            assert mask.flatten(1).any(1).nonzero().flatten().tolist() == rows
            if rows:
                full = values[f"{layer}.weight"].reshape(len(rows), *mask.shape[1:])
                columns = shared.units.columns(layer, units.used, mask.shape[1])
                assert torch.equal(full[:, columns], artifact.tensors[f"value/{layer}.weight"])
                assert not full[:, ~columns].any()
    overlap = [bool((claims[0][name] & claims[1][name]).any()) for name in claims[0].keys() & claims[1].keys()]
    assert overlap
    assert not any(overlap)


@pytest.mark.parametrize(("arch", "slow"), [("tinyresnet", twin.tinyresnet), ("mlp-6-5", twin.mlp)])
@pytest.mark.parametrize("which", [1, 2])
def test_the_view_is_the_network_gated_behind_each_norm(arch: str, slow: Callable[..., Tensor], which: int) -> None:
    shared = empty(arch)
    lineage = family(shared)[:which]
    used = decode_units(lineage[-1], shared.units).used
    images = torch.randn(3, 3, 8, 8)
    state = everything(shared, lineage)
    features = slow(state, {group: mask.tolist() for group, mask in used.items()}, images)
    head = lineage[-1].tensors
    expected = features @ head["head.weight"].T + head["head.bias"]
    assert torch.allclose(bind(shared, view_of(shared, lineage))(images), expected, atol=1e-5)
    check_probe(shared, lineage, view_of(shared, lineage), eager_prober)


def everything(shared: Backbone, lineage: list[Artifact]) -> dict[str, Tensor]:
    """Weights, norms and biases of all units of a lineage, one artifact after the other, row by row."""
    state = {name: torch.zeros(t.shape) for name, t in shared.tensors.items()}
    state |= {name: torch.ones(t.shape) for name, t in state.items() if name.endswith("running_var")}
    for artifact in lineage:
        units = decode_units(artifact, shared.units)
        for name, block in artifact.tensors.items():
            kind, _, tensor = name.partition("/")
            if kind == "value":
                part = shared.units.layers[tensor.removesuffix(".weight")]
                for i, row in enumerate(units.new[part.group].nonzero().flatten().tolist()):
                    columns = shared.units.columns(tensor.removesuffix(".weight"), units.used, state[tensor].shape[1])
                    state[tensor][row, columns] = block[i]
            elif kind in ("norm", "bias"):
                module = tensor.rpartition(".")[0]
                group = shared.units.norms.get(module) or shared.units.layers[module].group
                state[tensor][units.new[group]] = block
    return state


@pytest.mark.parametrize("arch", ["tinyresnet", "mlp-6-5", "widecnn"])
def test_the_cut_view_is_smaller_and_gives_the_same_logits(arch: str) -> None:
    shared = empty(arch)
    for lineage in (family(shared)[:1], family(shared)):
        view = view_of(shared, lineage)
        small = cut_view(shared, view)
        images = torch.randn(4, 3, 8, 8)
        expected, got = bind(shared, view)(images), bind(shared, small)(images)
        assert float((got - expected).abs().max()) <= 1e-5 * float(expected.std())
        assert sum(w.numel() for w in small.weights.values()) < 0.7 * sum(w.numel() for w in view.weights.values())


def test_the_task_digest_knows_which_units_are_used(shared: Backbone, chain: list[Artifact]) -> None:
    from dataclasses import replace

    from masks_store import task_digest

    view = view_of(shared, chain[:1])
    assert view.units is not None
    more = {group: torch.ones_like(mask) for group, mask in view.units.items()}
    assert task_digest(shared, view) == chain[0].manifest.task_digest
    assert task_digest(shared, replace(view, units=more)) != chain[0].manifest.task_digest


@pytest.mark.parametrize("method", ["linear", "bn", "clr"])
def test_what_stands_on_a_clnp_task_sees_its_units_and_no_other_even_with_a_norm_of_its_own(
    shared: Backbone, chain: list[Artifact], method: str
) -> None:
    child = read_artifact(zoo.task(shared, "child", method, ancestors=chain, seed=3))
    view = view_of(shared, [*chain, child])
    used = decode_units(chain[-1], shared.units).used
    assert view.units is not None
    assert all(torch.equal(view.units[group], mask) for group, mask in used.items())
    for norm, group in shared.units.norms.items():
        for field, neutral in (("weight", 0.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            tensor = view.overlay.norm[f"{norm}.{field}"]
            assert bool((tensor[~used[group]] == neutral).all())
            if method != "linear":
                assert torch.equal(tensor[used[group]], child.tensors[f"norm/{norm}.{field}"][used[group]])
    images = torch.randn(2, 3, 8, 8)
    expected = bind(shared, view)(images)
    assert torch.allclose(bind(shared, cut_view(shared, view))(images), expected, atol=1e-5)


# ---------------------------------------------------------------- from the file alone


def broken(chain: list[Artifact], change: Callable[[surgery.Parts], None], data: bytes | None = None) -> bytes:
    parts = surgery.take_apart(data or zoo.task(empty(), "first", "clnp", share=0.4, seed=1))
    change(parts)
    return parts.build()


def _drop(name: str) -> Callable[[surgery.Parts], None]:
    def change(parts: surgery.Parts) -> None:
        del parts.tensors[name]
        parts.manifest["masks"].pop(name, None)

    return change


def _info(name: str, **fields: int) -> Callable[[surgery.Parts], None]:
    return lambda parts: parts.manifest["masks"][name].update(fields)


GROUP = "layers.0.0.conv1"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop(f"new_units/{GROUP}"), f"units/{GROUP}: without new_units/{GROUP}"),
        (_drop(f"units/{GROUP}"), f"new_units/{GROUP}: without units/{GROUP}"),
        (_info(f"new_units/{GROUP}", bits=5), f"new_units/{GROUP}: 5 bits where units/{GROUP} has 4"),
        (_info(f"units/{GROUP}", ones=0, bits=4), f"units/{GROUP}: no unit is in use"),
        (_info(f"new_units/{GROUP}", ones=4), f"new_units/{GROUP}: 4 units where units/{GROUP} has"),
        (lambda p: p.put(f"units/{GROUP}", [[1]], "U8"), f"units/{GROUP}: u8 [1, 1] where u8 [any] was expected"),
        (lambda p: p.put("value/conv1.weight", [1.0]), "value/conv1.weight: f32 [1] where f32/bf16/f16 [any, any]"),
        (lambda p: p.put("adapter/conv1", [[[[1.0] * 3] * 3]]), "adapter/conv1: method clnp has no adapter tensors"),
        (lambda p: p.manifest["masks"].pop(f"units/{GROUP}"), f"units/{GROUP}: not in the manifest's masks"),
        (lambda p: p.manifest.update(method="linear"), f"units/{GROUP}: method linear has no units tensors"),
        (lambda p: p.tensors.pop("norm/bn1.bias"), "norm/bn1: without bias"),
    ],
)
def test_what_the_file_alone_can_tell_is_told(
    chain: list[Artifact], change: Callable[[surgery.Parts], object], told: str
) -> None:
    found = surgery.faults(broken(chain, change))  # pyright: ignore[reportArgumentType]
    assert any(told in fault for fault in found), found


def test_many_faults_of_one_file_are_told_at_once(chain: list[Artifact]) -> None:
    def change(parts: surgery.Parts) -> None:
        _info("units/conv1", ones=0)(parts)
        _drop(f"units/{GROUP}")(parts)
        parts.put("head.bias", [1.0])

    found = "\n".join(surgery.faults(broken(chain, change)))
    assert "units/conv1: no unit is in use" in found
    assert f"new_units/{GROUP}: without" in found
    assert "head.bias" in found


# ---------------------------------------------------------------- with the backbone, with the lineage


def faults_in(data: bytes, shared: Backbone) -> list[str]:
    return fit_faults(read_artifact(data), shared)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda p: (_drop("units/conv1")(p), _drop("new_units/conv1")(p)),
            ["new_units/conv1: missing", "units/conv1: missing"],
        ),
        (lambda p: p.tensors.pop("value/conv1.weight"), ["value/conv1.weight: missing"]),
        (
            lambda p: p.put("value/conv1.weight", torch.zeros(1, 1, 1, 1)),
            ["value/conv1.weight: f32 [1, 1, 1, 1] where f32/bf16/f16 [1, 3, 3, 3] was expected"],
        ),
        (
            lambda p: p.put("bias/conv1.bias", [1.0]),
            ["bias/conv1.bias: the backbone has no such layer, or the artifact adds no unit to it"],
        ),
        (
            lambda p: p.put("head.weight", torch.ones(3, 8)),
            ["head.weight: not 0 for features that the task does not use"],
        ),
        (lambda p: p.put("head.weight", torch.ones(3, 9)), ["head.weight: 9 features where the backbone gives 8"]),
    ],
)
def test_what_the_backbone_can_tell_is_told(
    shared: Backbone, change: Callable[[surgery.Parts], object], told: list[str]
) -> None:
    parts = surgery.take_apart(zoo.task(shared, "first", "clnp", share=0.4, seed=1))
    change(parts)
    assert faults_in(parts.build(), shared) == told


def test_masks_that_are_not_as_long_as_the_group_is_wide_are_told(shared: Backbone) -> None:
    other = read_backbone(create("tinyresnet", image_size=8, keep=0.0, arch_args={"width": 5, "blocks": [1, 1]}).data)
    found = faults_in(zoo.task(other, "first", "clnp", share=0.5, seed=1), shared)
    assert "units/conv1: 5 bits where 4 were expected" in found
    assert "new_units/layers.1.0.conv2: 10 bits where 8 were expected" in found


def test_units_of_an_unsupported_network_are_refused_by_name() -> None:
    dense = zoo.backbone("mobilenet_v2", size=32, keep=0.0)
    data = zoo.task(empty(), "first", "clnp", share=0.4)
    assert "clnp does not support mobilenet_v2" in read_and_fail(data, dense)


def read_and_fail(data: bytes, shared: Backbone) -> str:
    artifact = read_artifact(data)
    with pytest.raises(FormatError) as caught:
        decode_claim(artifact, shared, [])
    assert set(caught.value.faults) <= set(fit_faults(artifact, shared))
    return str(caught.value)


def test_new_units_that_the_lineage_owns_and_units_that_nobody_below_owns_are_told(
    shared: Backbone, chain: list[Artifact]
) -> None:
    claims = lineage_claims(shared, chain)
    with pytest.raises(FormatError, match="do not fit its lineage") as caught:
        decode_claim(chain[0], shared, claims[:1])  # a task on itself
    assert any("belong to its lineage" in fault for fault in caught.value.faults)
    with pytest.raises(FormatError) as caught:
        decode_claim(chain[1], shared, [])  # without what it is built on
    assert any("neither new nor its lineage's" in fault for fault in caught.value.faults)


# ---------------------------------------------------------------- in a store


def unit_store(path: Path) -> Store:
    return Store.create(path, create("tinyresnet", image_size=8, keep=0.0, arch_args=ARGS), capacity="units")


def test_a_chain_is_registered_served_verified_and_deleted(tmp_path: Path) -> None:
    with unit_store(tmp_path / "store") as store:
        chain = family(store.backbone)
        free = sum(f for f, _ in store.capacity_left().values())
        for artifact in chain:
            data = zoo.task(
                store.backbone,
                artifact.manifest.task,
                "clnp",
                ancestors=chain[: chain.index(artifact)],
                share=(0.4, 0.5)[chain.index(artifact)],
                seed=1 + chain.index(artifact),
            )
            assert store.register(data).version.version == artifact.version
        assert store.verify() == []
        rows = sum(int(mask.sum()) for claim in store.claims().values() for mask in claim.values())
        assert sum(f for f, _ in store.capacity_left().values()) == free - rows
    with Store.open(tmp_path / "store") as again:
        assert again.capacity == "units"
        again.delete_task("second")
        left = free_positions(again.backbone, lineage_claims(again.backbone, chain[:1]))
        assert all(torch.equal(mask, left[name]) for name, mask in again.free_positions().items())


def test_two_tasks_on_one_base_may_not_take_the_same_unit(tmp_path: Path) -> None:
    with unit_store(tmp_path / "store") as store:
        shared = store.backbone
        store.register(zoo.task(shared, "a", "clnp", share=0.4, seed=1))
        rival = zoo.task(shared, "b", "clnp", share=0.4, seed=1, classes=4)
        with pytest.raises(ClaimOverlap):
            store.register(rival)
        claims = list(store.claims().values())
        store.register(zoo.task(shared, "c", "clnp", taken=claims, share=0.6, seed=4))
        assert store.verify() == []


def test_siblings_that_share_a_unit_overlap_though_they_read_different_ones(tmp_path: Path) -> None:
    shared = empty("mlp-6-5")
    from masks_store import TaskUnits, encode_units, unit_blocks

    def on(inputs: list[int], seed: int) -> bytes:
        used = {"fc1": torch.zeros(6, dtype=torch.bool), "fc2": torch.tensor([True, False, False, False, False])}
        used["fc1"][inputs] = True
        units = TaskUnits(used, used)
        coded, masks = encode_units(units)
        state = {name: torch.randn(t.shape) for name, t in shared.tensors.items()}
        head = torch.zeros(2, 5)
        head[:, 0] = 1.0
        parts = {**coded, **unit_blocks(state, shared, units), "head.weight": head, "head.bias": torch.zeros(2)}
        return zoo.finish(shared, f"task{seed}", "clnp", parts, masks, [], classes=2, seed=seed)

    with Store.create(tmp_path / "s", create("mlp-6-5", image_size=8, keep=0.0), capacity="units") as store:
        assert store.backbone_digest == shared.digest
        store.register(on([0, 1], 1))
        with pytest.raises(ClaimOverlap) as caught:
            store.register(on([2, 3], 2))
        assert [fault.partition(":")[0] for fault in caught.value.faults] == ["fc2.weight"]


@pytest.mark.parametrize(
    ("arch", "keep", "capacity", "words"),
    [
        ("tinyresnet", 0.5, "units", "keep 0"),
        ("tinyresnet", 1.0, "units", "keep 0"),
        ("mobilenet_v2", 0.0, "units", "clnp does not support mobilenet_v2"),
        ("tinyresnet", 0.0, "channels", "'channels' is not one of weights, units"),
    ],
)
def test_a_store_of_units_needs_keep_0_and_a_network_that_clnp_supports(
    tmp_path: Path, arch: str, keep: float, capacity: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        Store.create(tmp_path / "s", create(arch, image_size=32, keep=keep), capacity=capacity)
    assert not (tmp_path / "s").exists()


def test_packnet_is_refused_in_a_store_of_units_and_clnp_in_one_of_weights_with_the_mend(tmp_path: Path) -> None:
    made = create("tinyresnet", image_size=8, keep=0.0, arch_args=ARGS)
    shared = read_backbone(made.data)
    with Store.create(tmp_path / "u", made, capacity="units") as units, Store.create(tmp_path / "w", made) as weights:
        with pytest.raises(BackboneMismatch, match=r"packnet takes weights, this store gives units.*capacity weights"):
            units.register(zoo.task(shared, "a", "packnet"))
        with pytest.raises(BackboneMismatch, match=r"clnp takes units, this store gives weights.*--capacity units"):
            weights.register(zoo.task(shared, "a", "clnp"))


def test_packnet_cannot_stand_on_a_clnp_task_nor_clnp_on_another(shared: Backbone, chain: list[Artifact]) -> None:
    packed = read_artifact(zoo.task(shared, "p", "packnet", taken=lineage_claims(shared, chain)))
    assert lineage_faults(packed, chain) == ["packnet cannot be built on a clnp task; clnp, clr, bn, linear can"]
    head = read_artifact(zoo.task(shared, "l", "linear", ancestors=chain))
    assert lineage_faults(chain[0], [*chain, head]) == ["clnp is built on clnp tasks alone, not on linear"]
    assert lineage_faults(head, chain) == lineage_faults(chain[1], chain[:1]) == []


def test_a_lineage_that_is_forbidden_is_not_registered(tmp_path: Path) -> None:
    with unit_store(tmp_path / "store") as store:
        base = store.register(zoo.task(store.backbone, "a", "clnp", share=0.4)).version.version
        linear = store.register(zoo.task(store.backbone, "l", "linear", ancestors=store.lineage(base)))
        below, taken = store.lineage(linear.version.version), [*store.claims().values()]
        with pytest.raises(FormatError) as caught:
            store.register(zoo.task(store.backbone, "c", "clnp", ancestors=below, taken=taken))
        assert caught.value.faults[0] == "clnp is built on clnp tasks alone, not on linear"
