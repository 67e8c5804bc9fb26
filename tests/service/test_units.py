"""Tasks with units are served as smaller networks of their own: right alone, mixed, after deletions and a restart."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import service.host_artifacts
from masks_store import (
    Artifact,
    ClaimOverlap,
    NotFound,
    ProbeFailed,
    Store,
    create,
    decode_units,
    probe_faults,
    read_artifact,
    read_backbone,
)
from service.engine import DeviceOverlay, Engine, Kernels
from service.residency import Residency
from service.serving import Serving
from service.workers import Work

from .. import zoo
from . import live, rig
from .test_engine import check_alone_and_mixed
from .test_serving import settled

UNITS = (
    ("founder", "clnp", None, False),
    ("heir", "clnp", "founder", False),
    ("head-on-heir", "linear", "heir", False),
    ("norm-on-heir", "bn", "heir", False),
    ("adapter-on-heir", "clr", "heir", False),
    ("sibling", "clnp", None, False),
)


@pytest.mark.parametrize("arch", ["tinyresnet", "mlp-24-18", "widecnn"])
def test_the_cut_networks_give_the_eager_logits_alone_and_mixed(arch: str) -> None:
    backbone = zoo.backbone(arch, keep=0.0, size=8)
    normless = ("clnp", "linear")  # the other methods train a norm
    check_alone_and_mixed(rig.rig(backbone, [kind for kind in UNITS if backbone.eps or kind[1] in normless]))


def test_the_cut_network_of_an_mlp_over_one_channel_gives_the_eager_logits() -> None:
    grey = read_backbone(create("mlp-24-18", image_size=8, keep=0.0, arch_args={"channels": 1}).data)
    check_alone_and_mixed(rig.rig(grey, [kind for kind in UNITS if kind[1] in ("clnp", "linear")]))


def test_a_batch_mixes_a_task_and_what_stands_on_it_and_their_order_changes_no_bit() -> None:
    made = rig.rig(zoo.backbone(keep=0.0), UNITS)
    assert made.sight("heir") == made.sight("head-on-heir") == made.sight("adapter-on-heir") != made.sight("founder")
    names = ["heir", "head-on-heir", "adapter-on-heir", "norm-on-heir"]
    images = [rig.pictures(made.backbone, n, n) for n in (1, 2, 3, 1)]
    straight = made.run(names, images)
    for got, expected in zip(reversed(made.run(names[::-1], images[::-1])), straight, strict=True):
        assert got.tobytes() == expected.tobytes()


def test_a_forward_computes_with_no_more_channels_than_the_task_uses_and_writes_no_claim() -> None:
    seen: list[tuple[int, ...]] = []

    def conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(weight.shape[:2]))
        return Kernels().conv2d(x, weight, *rest)

    made = rig.rig(zoo.backbone(keep=0.0), UNITS, kernels=Kernels(conv2d=conv2d))
    made.run(["heir"], [rig.pictures(made.backbone, 1, 0)])
    graph = made.backbone.units
    used = decode_units(made.tasks["heir"][-1], graph).used
    sizes = {group: int(mask.sum()) for group, mask in used.items()}
    expected = {(sizes[part.group], 3 if part.reads is None else sizes[part.reads]) for part in graph.layers.values()}
    assert set(seen) == expected
    assert sum(sizes.values()) < sum(graph.sizes.values())
    assert not made.engine.shared.claims(), "a smaller network needs nothing of the pool"


def test_the_same_in_bf16_within_the_probes_bound() -> None:
    made = rig.rig(zoo.backbone(keep=0.0), UNITS, dtype="bf16")
    images = rig.pictures(made.backbone, 4, 1)
    expected = rig.reference(made.backbone, made.tasks["founder"], images)
    assert not probe_faults(expected, torch.from_numpy(made.run(["founder"], [images])[0]), "bf16")


# ---------------------------------------------------------------- one cut network for equal sets of units


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = create("tinyresnet", image_size=16, keep=0.0, seed=0, arch_args={"width": 4})
    return Store.create(tmp_path / "store", made, capacity="units")


@pytest.fixture
def twins(store: Store) -> dict[str, str]:
    """Name -> version: two clnp tasks that use the same units of the founder and add none, and what stands on one."""
    made = {"founder": live.add(store, "founder", "clnp", share=1.0, seed=1)}
    for name in ("one", "two"):
        made[name] = live.add(store, name, "clnp", on=made["founder"], seed=2, classes=len(made) + 2)
    made["other"] = live.add(store, "other", "clnp", on=made["founder"], seed=9)
    made["head"] = live.add(store, "head", "linear", on=made["one"], seed=3)
    made["norm"] = live.add(store, "norm", "bn", on=made["one"], seed=4)
    return made


def _loaded(store: Store, names: dict[str, str]) -> tuple[Engine, Residency, dict[str, DeviceOverlay]]:
    engine = Engine(store.backbone)
    residency = Residency(store, engine, host_bytes=1 << 24, overlay_bytes=1 << 24)
    residency.start()
    return engine, residency, {name: residency.load(residency.lease(v), "fp32") for name, v in names.items()}


def test_tasks_with_equal_units_share_one_cut_network_and_answer_as_if_alone(
    store: Store, twins: dict[str, str]
) -> None:
    engine, residency, tasks = _loaded(store, twins)
    images = rig.pictures(store.backbone, 3, 5)
    used = {name: store.view(version).units for name, version in twins.items()}
    for a, b in itertools.combinations(twins, 2):
        equal = all(torch.equal(mask, used[b][group]) for group, mask in used[a].items())
        alike = equal and tasks[a].folds == tasks[b].folds
        assert (tasks[a].weights is tasks[b].weights) is alike, (a, b)
    own = {id(task.weights) for task in tasks.values()}
    assert len(own) == 4, "the founder's, the twins', the other's, and the twins' without their norm in it"
    for name, version in twins.items():
        sight = residency.lease(version).sight
        (answer,) = engine.run(sight, "fp32", [images], [tasks[name]])
        rig.check(live.expected(store, version, images), answer, name)
        alone, _, one = _loaded(store, {name: version})
        assert alone.run(sight, "fp32", [images], [one[name]])[0].tobytes() == answer.tobytes()


def test_a_cut_network_that_had_to_go_is_cut_again_from_files_that_are_not_checked_again(
    store: Store, twins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def counted(data: bytes, where: str) -> Artifact:  # the real one, counted
        checked.append(where)
        return read_artifact(data, where)

    monkeypatch.setattr(service.host_artifacts, "read_artifact", counted)
    engine, residency, _ = _loaded(store, {name: twins[name] for name in ("founder", "one")})
    assert sorted(checked) == sorted([twins["founder"], twins["one"]]), "each once"
    images, record = rig.pictures(store.backbone, 3, 5), residency.lease(twins["one"])
    before = engine.run(record.sight, "fp32", [images], [residency.load(record, "fp32")])[0].tobytes()
    residency._overlays.drop((twins["one"], "fp32"))
    again = engine.run(record.sight, "fp32", [images], [residency.load(record, "fp32")])[0].tobytes()
    assert again == before
    assert len(checked) == 2


def test_tasks_with_equal_units_share_a_forward_and_others_do_not(store: Store, twins: dict[str, str]) -> None:
    rows: list[int] = []

    def conv2d(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return Kernels().conv2d(x, *rest)

    engine = Engine(store.backbone, kernels=Kernels(conv2d=conv2d))
    residency = Residency(store, engine, host_bytes=1 << 24, overlay_bytes=1 << 24)
    residency.start()
    images = {name: rig.pictures(store.backbone, n, n) for n, name in enumerate(twins, 1)}
    works: dict[str, Work] = {}
    for name, version in twins.items():
        record = residency.lease(version)
        works[name] = Work(record.sight, "fp32", images[name], residency.load(record, "fp32"))
    layers = len(store.backbone.units.layers)

    def together(*names: str) -> int:
        """Rows of the first layer's call, once for each forward."""
        rows.clear()
        mine = [works[name] for name in names]
        answers = engine.run(mine[0].sight, "fp32", [work.images for work in mine], [work.task for work in mine])
        for name, answer in zip(names, answers, strict=True):
            rig.check(live.expected(store, twins[name], images[name]), answer, name)
        assert set(Counter(rows).values()) == {layers}
        return len(rows) // layers

    assert together("one", "two") == 1
    assert works["one"].group == works["two"].group
    assert together("two", "other", "one") == 2
    assert works["one"].group != works["other"].group != works["founder"].group
    assert together("head", "two") == 1, "a head on the one computes with the weights of both"
    assert together("norm", "two") == 2, "a norm of its own is not in the twins' weights"


def test_a_shared_cut_network_is_counted_once_and_goes_with_the_last_task_that_has_it(
    store: Store, twins: dict[str, str]
) -> None:
    engine, residency, tasks = _loaded(store, twins)
    cuts = {task.weights.key: task.weights.nbytes for task in tasks.values() if task.weights}
    assert residency._overlays.size == sum(task.size for task in tasks.values()) + sum(cuts.values())
    key = tasks["one"].weights.key
    for name in ("one", "head"):
        tasks.pop(name)
        residency.unload(twins[name])
    gc.collect()
    assert key in engine._own_weights, "the other twin has it"
    assert residency._overlays.size == sum(task.size for task in tasks.values()) + sum(cuts.values())
    tasks.pop("two")
    residency.unload(twins["two"])
    gc.collect()
    assert key not in engine._own_weights
    assert residency._overlays.size == sum(t.size for t in tasks.values()) + sum(cuts.values()) - cuts[key]


def test_the_same_units_in_another_dtype_are_another_cut_network(store: Store, twins: dict[str, str]) -> None:
    _, residency, tasks = _loaded(store, {"one": twins["one"]})
    half = residency.load(residency.lease(twins["one"]), "bf16").weights
    assert {weight.dtype for weight in half.tensors.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in tasks["one"].weights.tensors.values()} == {torch.float32}


# ---------------------------------------------------------------- a running server


async def check(serving: Serving, store: Store, versions: Sequence[str]) -> None:
    """Ask all at once, in one queue."""
    images = rig.pictures(store.backbone, 3, 5)
    answers = await asyncio.gather(*(serving.infer(version, images) for version in versions))
    for version, answer in zip(versions, answers, strict=True):
        rig.check(live.expected(store, version, images), answer.logits, version)
        assert serving.state(version) == "ready"


@pytest.mark.anyio
async def test_tasks_are_added_asked_deleted_and_asked_again_after_a_restart(store: Store) -> None:
    founder = live.add(store, "founder", "clnp", share=0.4, seed=1)
    async with live.serve(store, workers=2) as serving:
        await check(serving, store, [founder])
        ancestors = store.lineage(founder)
        data = zoo.task(store.backbone, "heir", "clnp", ancestors=ancestors, share=0.5, seed=2)
        heir = store.register(data, prober=serving.prober).version.version
        head = live.add(store, "head", "linear", on=heir, seed=3)
        sibling = live.add(store, "sibling", "clnp", share=0.5, seed=4)
        await serving.refresh()
        await check(serving, store, [founder, heir, head, sibling, heir, founder])
        store.delete_task("sibling")
        await serving.refresh()
        with pytest.raises(NotFound):
            await serving.infer(sibling, rig.pictures(store.backbone, 1, 0))
        successor = live.add(store, "successor", "clnp", on=heir, share=0.9, seed=5)  # takes what was given back
        await serving.refresh()
        await check(serving, store, [founder, heir, head, successor])
    async with live.serve(store) as again:
        await settled(again)
        await check(again, store, [successor, head, heir, founder])
    assert store.verify() == []


@pytest.mark.anyio
async def test_registration_runs_the_probe_of_the_cut_network_and_refuses_a_wrong_one(store: Store) -> None:
    from ..masks_store.surgery import take_apart

    async with live.serve(store) as serving:
        parts = take_apart(zoo.task(store.backbone, "liar", "clnp", share=0.5))
        parts.put("probe.logits", torch.ones(2, 3))
        with pytest.raises(ProbeFailed):
            store.register(parts.build(), prober=serving.prober)
        live.add(store, "taker", "clnp", share=0.9, seed=1)
        rival = zoo.task(store.backbone, "rival", "clnp", share=0.9, seed=1, classes=4)
        with pytest.raises(ClaimOverlap):
            store.register(rival, prober=serving.prober)
        assert [task.name for task in store.tasks()] == ["taker"]
