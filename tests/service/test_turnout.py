"""How many threads a batch gets: all while it is alone and they are faster, else its worker's own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine import Kernels
from service.memory import cores
from service.turnout import KINDS, TRIES, VALID_S, Turnout

from . import live, rig


class Bench:
    """A turnout with a clock of its own, and batches that come one after the other."""

    def __init__(self, own: int = 1, most: int = 2) -> None:
        self.now = 0.0
        self.turnout = Turnout(own, most, clock=lambda: self.now)

    def compute(self, seconds: Mapping[int, float], times: int = 1, kind: Hashable = "one", **how: Any) -> list[int]:
        """The threads of each batch, which take so many seconds."""
        chosen: list[int] = []
        for _ in range(times):
            turn = self.turnout.begin(kind, more=False, **how)
            chosen.append(turn.threads)
            self.turnout.end(turn, seconds[turn.threads])
        return chosen


@pytest.mark.parametrize(("seconds", "faster"), [({4: 1.0, 2: 1.5}, 4), ({4: 2.0, 2: 1.5}, 2)])
def test_one_that_is_alone_gets_the_number_of_threads_that_is_faster(seconds: dict[int, float], faster: int) -> None:
    bench = Bench(own=2, most=4)
    tried = bench.compute(seconds, 2 * TRIES)
    assert tried.count(2) == tried.count(4) == TRIES
    assert set(bench.compute(seconds, 500)) == {faster}


def test_both_are_tried_anew_after_a_while() -> None:
    bench = Bench()
    assert bench.compute({1: 1.0, 2: 3.0}, 100).count(2) == TRIES
    bench.now = VALID_S + 1
    assert bench.compute({1: 1.0, 2: 0.5}, 100).count(1) == TRIES


def test_one_slow_batch_decides_nothing() -> None:
    bench = Bench()
    bench.compute({1: 2.0, 2: 9.0})
    bench.compute({1: 2.0, 2: 1.0}, 2 * TRIES - 1)
    assert bench.compute({1: 2.0, 2: 1.0}) == [2]


def test_each_kind_is_measured_by_itself_even_in_turns() -> None:
    bench = Bench()
    for _ in range(2 * TRIES):
        bench.compute({1: 1.0, 2: 3.0}, kind="small")
        bench.compute({1: 9.0, 2: 5.0}, kind="large")
    assert bench.compute({1: 1.0, 2: 3.0}, kind="small") == [1]
    assert bench.compute({1: 9.0, 2: 5.0}, kind="large") == [2]


def test_who_has_company_gets_a_workers_own_threads_and_so_do_the_next() -> None:
    bench = Bench()
    first = bench.turnout.begin("one", more=False)
    second = bench.turnout.begin("one", more=False)
    assert (first.threads, second.threads) == (2, 1)
    bench.turnout.end(first, 1.0)
    bench.turnout.end(second, 1.0)
    assert not first.alone
    chosen = bench.compute({1: 2.0, 2: 1.0}, 40)
    assert chosen[0] == 1, "company was there a moment ago"
    assert chosen[-1] == 2


def test_requests_that_wait_are_company() -> None:
    assert Bench().turnout.begin("one", more=True).threads == 1


def test_only_one_worker_ever_takes_all_threads() -> None:
    bench = Bench()
    assert set(bench.compute({1: 2.0, 2: 1.0}, 50, first=False)) == {1}


def test_with_no_more_than_its_own_there_is_nothing_to_choose() -> None:
    assert set(Bench(own=3, most=2).compute({3: 1.0}, 50)) == {3}


def test_no_more_kinds_are_remembered_than_is_said() -> None:
    bench = Bench()
    bench.compute({1: 1.0, 2: 3.0}, 2 * TRIES, kind="first")
    for kind in range(KINDS):
        bench.compute({1: 1.0, 2: 3.0}, kind=kind)
    assert bench.compute({1: 1.0, 2: 3.0}, kind="first") == [2], "tried anew"


@pytest.mark.anyio
async def test_the_engine_answers_alike_with_either(tmp_path: Path) -> None:
    used: list[int] = []

    def conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if weight.shape[1] == 3:  # the first layer: a forward begins
            used.append(torch.get_num_threads())
        return Kernels().conv2d(x, weight, *rest)

    store = live.empty_store(tmp_path / "store")
    version = live.add(store, "birds", "clr")
    images = rig.pictures(store.backbone, 2, 5)
    expected = live.expected(store, version, images)
    async with live.serve(store, workers=cores() + 1, kernels=Kernels(conv2d=conv2d)) as serving:
        await serving.infer(version, images)
        used.clear()
        for _ in range(2 * TRIES + 6):  # probes may have kept the first ones company
            rig.check(expected, (await serving.infer(version, images)).logits)
    assert set(used) == {1, cores()}
