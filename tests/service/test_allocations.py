"""A forward computes in memory that its thread keeps: it allocates features and logits, which nothing writes over."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from service.engine import Logits, Pictures, onednn
from service.engine.compiled import compiled

from .. import zoo
from . import rig

KINDS = [("clr-a", "clr", None, False), ("clr-b", "clr", None, False), ("bn", "bn", None, False)]
FOLDED = [("linear", "linear", None, False)]


@pytest.fixture(autouse=True)
def one_call() -> None:
    """Steps that are not one call of C allocate what each gives."""
    if compiled() is None or onednn.found()[0] is None:
        pytest.skip("forwards are not one call here")


def batch(kinds: Sequence[tuple[str, str, str | None, bool]], rows: int) -> tuple[rig.Rig, list[str], list[Pictures]]:
    """A rig over a ResNet-18, its tasks, and so many pictures for each."""
    own = rig.rig(zoo.light_backbone("resnet18", size=64), kinds)
    return own, list(own.tasks), [rig.pictures(own.backbone, rows, seed) for seed, _ in enumerate(own.tasks)]


@pytest.mark.parametrize("kinds", [KINDS, FOLDED], ids=["mixed", "folded"])
def test_of_all_that_a_forward_computes_only_features_and_logits_are_allocated(
    kinds: Sequence[tuple[str, str, str | None, bool]],
) -> None:
    own, names, images = batch(kinds, 8)
    for _ in range(2):
        logits = own.run(names, images)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        own.run(names, images)
    by_torch = sum(max(0, event.self_cpu_memory_usage) for event in profiled.key_averages())
    rows = sum(map(len, images))
    features, answers = 4 * rows * own.backbone.features, sum(one.nbytes for one in logits)
    assert features <= by_torch <= features + 2 * answers + 256
    tracemalloc.start()
    try:
        own.run(names, images)  # what Python keeps of a first time
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        own.run(names, images)
        by_numpy = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert by_numpy < sum(one.nbytes for one in images) / 2


def test_logits_that_were_handed_out_stay_as_they_are_whatever_is_computed_next() -> None:
    own, names, images = batch([*KINDS, *FOLDED], 3)
    first = own.run(names, images)
    kept: list[Logits] = [one.copy() for one in first]
    for rows in (1, 5, 3):
        own.run(names, [rig.pictures(own.backbone, rows, 50 + seed) for seed, _ in enumerate(names)])
    assert all(np.array_equal(one, other) for one, other in zip(first, kept, strict=True))
    for one, again in zip(kept, own.run(names, images), strict=True):
        assert one.tobytes() == again.tobytes()
