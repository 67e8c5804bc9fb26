"""Whatever computes and in whatever dtype, each answer is the slow reference's: any mix, order, size, and evictions."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masks_store import normalise, to_batch
from service.engine import Pictures

from ..reference import views as reference
from . import rig, ways
from .test_units import UNITS

PICTURES = 5
BOUNDS = {"fp32": 2e-5, "bf16": 0.15}
"""Of a logit, in standard deviations of its task's: some times what was ever seen; the probe's own are 1e-4, 0.25."""
Request = tuple[str, int]
"""Task, and number of the pictures that are asked for."""


@cache
def pooled(way: str, dtype: str) -> rig.Rig:
    """All methods over one pool, with room for two views of sixteen."""
    nbytes = ways.made("plain", dtype).engine.shared.layout(dtype).nbytes
    return ways.made(way, dtype, slot_bytes=2 * nbytes)


@cache
def cut(way: str, dtype: str) -> rig.Rig:
    """Tasks with units, each a smaller network, and what stands on them."""
    return ways.made(way, dtype, UNITS, keep=0.0)


@cache
def pictures(number: int) -> Pictures:
    return rig.pictures(cut("plain", "fp32").backbone, (1, 2, 3, 5, 8)[number], number)


@cache
def expected(units: bool, name: str, number: int) -> Tensor:
    """By the slow twin; of a task with units, whose twin is for a network by hand, by the network that is not cut."""
    own = (cut if units else pooled)("plain", "fp32")
    if units:
        return rig.reference(own.backbone, own.tasks[name], pictures(number))
    images = normalise(to_batch(pictures(number)), own.backbone.manifest.preprocess)
    return reference.logits(own.backbone, own.tasks[name], images)


@cache
def bound(units: bool, name: str, dtype: str) -> float:
    """By all pictures: two logits of one picture may be close together by chance."""
    together = torch.cat([expected(units, name, number) for number in range(PICTURES)])
    return BOUNDS[dtype] * float(together.std(correction=0))


@st.composite
def batches(draw: st.DrawFn) -> tuple[bool, list[Request]]:
    """Whether of tasks with units, and requests in any order, of tasks that see the same weights."""
    units = draw(st.integers(0, 4)) == 0
    own = (cut if units else pooled)("plain", "fp32")
    first = draw(st.sampled_from(sorted(own.tasks)))
    names = sorted(other for other in own.tasks if own.sight(other) == own.sight(first))
    request = st.tuples(st.sampled_from(names), st.integers(0, PICTURES - 1))
    return units, draw(st.lists(request, min_size=1, max_size=6))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("way", "dtype"), ways.EVERY)
def test_every_answer_is_the_slow_reference_s_however_views_come_and_go(way: str, dtype: str) -> None:
    made = {True: cut(way, dtype), False: pooled(way, dtype)}

    @settings(max_examples=40, deadline=None)
    @given(st.lists(batches(), min_size=2, max_size=6))
    def asked_one_after_the_other(given: list[tuple[bool, list[Request]]]) -> None:
        for units, batch in given:
            answers = made[units].run([name for name, _ in batch], [pictures(number) for _, number in batch])
            for (name, number), got in zip(batch, answers, strict=True):
                off = float((torch.from_numpy(got) - expected(units, name, number)).abs().max())
                assert off <= bound(units, name, dtype), f"{name} in {batch} is off by {off:.3g}"

    asked_one_after_the_other()
    assert made[False].engine.slots.eviction_age_seconds.read().count > 10, "views were evicted and written again"
