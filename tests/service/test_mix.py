"""A batch's mix never changes an answer, and neither does anything that is in the pool for others."""

from __future__ import annotations

import threading
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from masks_store import (
    Claim,
    claimed_values,
    create,
    free_positions,
    lineage_claims,
    overlay_of,
    read_backbone,
    selection_of,
    view_of,
)
from service.engine import DeviceOverlay, Engine, Kernels, Logits, Pictures
from service.engine.behind import Mix
from service.engine.places import Place
from service.lineages import folds, load_pooled

from .. import zoo
from ..processor import HAS_BF16
from . import rig

KINDS = [name for name, *_ in rig.KINDS]
PICTURES = 6


@cache
def made(*, native: bool = True) -> rig.Rig:
    return rig.rig(zoo.backbone(keep=0.5), native=native)


@cache
def pictures(number: int) -> Pictures:
    return rig.pictures(made().backbone, 1 + number % 3, number)


@cache
def expected(name: str, number: int) -> Tensor:
    return rig.reference(made().backbone, made().tasks[name], pictures(number))


def sharing(name: str) -> list[str]:
    """The tasks that see the same shared weights as this one."""
    return sorted(other for other in made().tasks if made().sight(other) == made().sight(name))


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[str, int]]:
    """(task, pictures) in any order and number, of tasks that see the same weights."""
    names = sharing(draw(st.sampled_from(KINDS)))
    return draw(st.lists(st.tuples(st.sampled_from(names), st.integers(0, PICTURES - 1)), min_size=1, max_size=8))


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_any_mix_in_any_order_gives_each_task_its_eager_logits(native: bool, batch: list[tuple[str, int]]) -> None:
    answers = made(native=native).run([name for name, _ in batch], [pictures(number) for _, number in batch])
    for (name, number), got in zip(batch, answers, strict=True):
        rig.check(expected(name, number), got, f"{name} in {batch}")


@settings(max_examples=20, deadline=None)
@given(st.permutations(["clr-a", "clr-b", "bn", "linear"]))
def test_the_order_in_which_tasks_come_changes_no_bit(names: list[str]) -> None:
    straight = dict(zip(sorted(names), made().run(sorted(names), [pictures(2)] * 4), strict=True))
    for name, got in zip(names, made().run(names, [pictures(2)] * 4), strict=True):
        assert got.tobytes() == straight[name].tobytes(), name


class Counting:
    """The real operators, and a count of calls and rows: of each weight, and of what each task has behind a layer."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()
        self.weights: set[int] = set()
        self.behinds = 0

    def kernels(self) -> Kernels:
        return Kernels(self.conv2d, self.linear, self.behind)

    def conv2d(self, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        self.note_weight(x, weight)
        return Kernels().conv2d(x, weight, *rest)

    def linear(self, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        self.note_weight(x, weight)
        return F.linear(x, weight, *rest)

    def behind(self, y: Tensor, mix: Mix, *rest: Any, **options: Any) -> Tensor:
        self.behinds += 1
        for start, stop, own in mix.parts:
            self.note(own, stop - start)
        return Kernels().behind(y, mix, *rest, **options)

    def note_weight(self, x: Tensor, weight: Tensor) -> None:
        self.weights.add(id(weight))
        self.note(weight, len(x))

    def note(self, what: object, rows: int) -> None:
        self.calls[id(what)] += 1
        self.rows[id(what)] += rows


def test_a_batch_of_tasks_of_one_base_runs_each_shared_layer_exactly_once() -> None:
    count = Counting()
    own = rig.rig(zoo.backbone(keep=1.0), kernels=count.kernels())
    names = ["clr-a", "clr-b", "bn", "clr-a"]
    images = [rig.pictures(own.backbone, 2, seed) for seed in range(len(names))]
    own.run(names, images)
    shared = {id(weight) for weight in own.engine.shared.base("fp32").tensors.values()}
    assert count.weights == shared
    assert {weight: count.calls[weight] for weight in shared} == dict.fromkeys(shared, 1)
    assert {count.rows[weight] for weight in shared} == {8}
    for name, rows in {"clr-a": 4, "clr-b": 2, "bn": 2}.items():
        behind = {id(what) for what in own.loaded[name].layers.behind.values()}
        assert {count.calls[what] for what in behind} == {1}, f"what {name} has behind a layer runs once"
        assert {count.rows[what] for what in behind} == {rows}, f"for the rows of {name}"


def test_tasks_that_lay_the_same_over_the_body_share_a_pass_with_their_norm_in_the_weights() -> None:
    count = Counting()
    own = rig.rig(zoo.backbone(keep=0.5), kernels=count.kernels())
    names = ["packnet-norm-child", "linear-on-child"]  # the child inherits its base's norm
    own.run(names, [rig.pictures(own.backbone, 1, seed) for seed in range(2)])
    assert count.behinds == 0
    assert set(count.calls.values()) == {1}
    assert set(count.rows.values()) == {2}


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_materialised_view_is_the_reference_s_bit_for_bit(dtype: str, onednn: bool) -> None:
    own = rig.rig(made().backbone, dtype=dtype, onednn=onednn)
    places = own.engine.shared.layout(dtype).places
    assert {type(place) is not Place for place in places.values()} <= {onednn and (dtype == "fp32" or HAS_BF16)}
    for name, lineage in own.tasks.items():
        view = view_of(own.backbone, lineage).weights
        for layer, got in filled(own.engine, own.loaded[name], dtype).items():
            assert torch.equal(got.float().view(torch.int32), view[layer].to(got.dtype).float().view(torch.int32)), name


def test_weights_of_one_version_alone_answer_as_those_that_are_compared_with_others() -> None:
    """So the probe of a version that is in no pool yet computes; in fp32 with the very numbers of its view."""
    own = made()
    name = next(name for name, lineage in own.tasks.items() if lineage[-1].manifest.method == "packnet")
    lineage, images = own.tasks[name], rig.pictures(own.backbone, 2, 5)
    weights, overlay = view_of(own.backbone, lineage).weights, overlay_of(lineage)
    answers: list[Logits] = []
    keys: set[str] = set()
    for version, alone in ((lineage[-1].version, False), (lineage[-1].version, True), ("another", True)):
        task = own.engine.load(version, overlay, "fp32", folds=folds(lineage), weights=weights, alone=alone)
        assert task.weights is not None
        keys.add(task.weights.key)
        answers += own.engine.run(own.sight(name), "fp32", [images], [task])
    assert len(keys) == 3
    assert all(np.array_equal(answer, own.run([name], [images])[0]) for answer in answers)


def filled(engine: Engine, task: DeviceOverlay, dtype: str = "fp32") -> dict[str, Tensor]:
    """The view of a task, layer -> weight, without its norm."""
    weights = engine.shared.layout(dtype).new()
    engine.shared.fill(weights, dtype, task.shown, {}, base=task.shown is None)
    return {name: place.restored(weights.memory[name]) for name, place in engine.shared.layout(dtype).places.items()}


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_scale_multiplies_the_weights_of_its_channel_and_nothing_else(dtype: str, onednn: bool) -> None:
    """Powers of two: no rounding. 70 channels do not fill oneDNN's blocks."""
    made = create("tinyresnet", image_size=16, keep=1.0, seed=0, arch_args={"width": 70, "blocks": [1, 1]})
    backbone = read_backbone(made.data)
    shared = Engine(backbone, onednn=onednn).shared
    scales = {name: 2.0 ** (torch.arange(len(kept)) % 7 - 3) for name, kept in backbone.kept.items()}
    weights = shared.layout(dtype).new()
    shared.fill(weights, dtype, None, scales, base=True)
    for name, place in shared.layout(dtype).places.items():
        expected = backbone.tensors[name].to(place.dtype) * scales[name].view(-1, 1, 1, 1)
        assert torch.equal(place.restored(weights.memory[name]).float(), expected.float()), name


@pytest.mark.parametrize("name", ["picked", "piggyback-on-child"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -0.0])
def test_no_value_of_a_hidden_weight_changes_a_bit(name: str, value: float) -> None:
    """An ancestor whose hidden weights hold anything at all, beside the real one."""
    backbone, lineage = made().backbone, made().tasks[name]
    hidden = {layer: ~shown for layer, shown in selection_of(backbone, lineage).items()}
    engine = Engine(backbone)
    poisoned = 0
    for artifact, claim in zip(lineage, lineage_claims(backbone, lineage), strict=True):
        values = {layer: weights.clone() for layer, weights in claimed_values(artifact, backbone).items()}
        for layer in values if artifact is not lineage[-1] else ():
            bad = hidden[layer][claim[layer]]  # [claimed]
            values[layer][bad] = value
            poisoned += int(bad.sum())
        if claim:
            engine.claim(artifact.version, claim, values)
    assert poisoned > 20
    expected = view_of(backbone, lineage).weights
    for layer, weight in filled(engine, load_pooled(engine, backbone, lineage, "fp32")).items():
        assert torch.equal(weight.contiguous().view(torch.int32), expected[layer].view(torch.int32)), layer


def test_what_a_task_sees_takes_one_bit_a_position_and_the_backbone_alone_nothing() -> None:
    layout = made().engine.shared.layout("fp32")
    shown = made().loaded["picked"].shown
    assert shown is not None
    assert shown.numel() * 8 == layout.total <= sum(place.length + 64 for place in layout.places.values())
    seen = sum(int((weight != 0).sum()) for weight in view_of(made().backbone, made().tasks["picked"]).weights.values())
    assert int(np.unpackbits(shown.numpy()).sum()) >= seen > 0
    assert made().loaded["linear"].shown is None


def free_claim(own: rig.Rig) -> Claim:
    """All that no task of a rig owns."""
    taken = [lineage_claims(own.backbone, lineage)[-1] for lineage in own.tasks.values()]
    return free_positions(own.backbone, taken)


def everything(own: rig.Rig) -> dict[str, Logits]:
    """Every task's logits for some pictures, from views materialised anew."""
    for key in {own.sight(name).key for name in own.tasks}:
        own.engine.slots.drop(key)
    images = rig.pictures(own.backbone, 2, 99)
    return {name: own.run([name], [images])[0] for name in own.tasks}


def test_no_value_in_anothers_claim_changes_a_bit() -> None:
    own = rig.rig(zoo.backbone(keep=0.5))
    before = everything(own)
    claim = free_claim(own)
    for value in (float("nan"), float("inf"), float("-inf"), -0.0, -1.5, 3e38):
        values = {name: torch.full((int(mask.sum()),), value) for name, mask in claim.items()}
        own.engine.claim(f"evil {value}", claim, values)
        after = everything(own)
        own.engine.release(f"evil {value}")
        gone = everything(own)
        for name in own.tasks:
            assert before[name].tobytes() == after[name].tobytes() == gone[name].tobytes(), (name, value)


def test_registering_and_deleting_while_a_forward_runs_changes_no_bit() -> None:
    own = rig.rig(zoo.backbone(keep=0.5))
    before = everything(own)
    claim = free_claim(own)
    values = {name: torch.full((int(mask.sum()),), float("nan")) for name, mask in claim.items()}
    stop = threading.Event()
    written: list[int] = []

    def churn() -> None:
        number = 0
        while not stop.is_set():
            own.engine.claim(f"evil {number}", claim, values)
            own.engine.release(f"evil {number}")
            number += 1
        written.append(number)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            for name, logits in everything(own).items():
                assert logits.tobytes() == before[name].tobytes(), name
    finally:
        stop.set()
        thread.join()
    assert written[0] > 20, "claims came and went while the forwards ran"


@pytest.mark.parametrize("native", [True, False])
def test_bf16_tasks_stay_within_the_probes_bound_alone_and_mixed(native: bool) -> None:
    own = rig.rig(zoo.backbone(keep=0.5), dtype="bf16", native=native)
    for sight in {own.sight(name) for name in own.tasks}:
        names = [name for name in own.tasks if own.sight(name) == sight]
        images = [rig.pictures(own.backbone, 2, seed) for seed in range(len(names))]
        for name, image, got in zip(names, images, own.run(names, images), strict=True):
            reference = rig.reference(own.backbone, own.tasks[name], image)
            off = (torch.from_numpy(got) - reference).abs().max() / reference.std(correction=0)
            assert off < 0.25, (name, float(off))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gpu_gives_the_eager_logits_alone_and_mixed(dtype: str) -> None:
    own = rig.rig(zoo.backbone("resnet18", size=64), rig.BRIEF, dtype=dtype, device="cuda")
    names = ["packnet-norm-child", "clr-on-child"]
    images = [rig.pictures(own.backbone, 4, seed) for seed in range(2)]
    for name, image, got in zip(names, images, own.run(names, images), strict=True):
        reference = rig.reference(own.backbone, own.tasks[name], image)
        off = (torch.from_numpy(got) - reference).abs().max() / reference.std(correction=0)
        assert off < {"fp32": 1e-4, "bf16": 0.25}[dtype]


def test_an_engine_without_free_weights_keeps_one_copy_of_them() -> None:
    engine = Engine(zoo.backbone(keep=1.0))
    base, pool = engine.shared.base("fp32").memory, engine.shared.pool("fp32").memory
    assert {name: weight.data_ptr() for name, weight in pool.items()} == {n: w.data_ptr() for n, w in base.items()}
