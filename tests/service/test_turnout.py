"""How many threads a batch gets: all while it is alone and they are faster, else its worker's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine import Kernels
from service.turnout import AGAIN, TRIES, Turnout

from . import live, rig


def computed(turnout: Turnout, seconds: dict[int, float], times: int, size: int = 1) -> list[int]:
    """The threads of batches that come one after the other and take so long."""
    chosen: list[int] = []
    for _ in range(times):
        turn = turnout.begin(size, more=False)
        chosen.append(turn.threads)
        turnout.end(turn, seconds[turn.threads])
    return chosen


@pytest.mark.parametrize(("seconds", "faster"), [({4: 1.0, 2: 1.5}, 4), ({4: 2.0, 2: 1.5}, 2)])
def test_one_that_is_alone_gets_the_number_of_threads_that_is_faster(seconds: dict[int, float], faster: int) -> None:
    turnout = Turnout(workers=2, own=2)
    tried = computed(turnout, seconds, 2 * TRIES)
    assert tried.count(2) == tried.count(4) == TRIES
    assert set(computed(turnout, seconds, AGAIN - 2 * TRIES)) == {faster}


def test_both_are_tried_anew_after_a_while() -> None:
    turnout = Turnout(workers=2, own=1)
    assert computed(turnout, {1: 1.0, 2: 3.0}, AGAIN).count(2) == TRIES
    assert computed(turnout, {1: 1.0, 2: 0.5}, AGAIN).count(1) == TRIES


def test_a_few_slow_ones_decide_nothing() -> None:
    turnout = Turnout(workers=2, own=1)
    for times, seconds in ((4, {1: 2.0, 2: 1.0}), (4, {1: 2.0, 2: 9.0}), (2 * TRIES - 8, {1: 2.0, 2: 1.0})):
        computed(turnout, seconds, times)
    assert computed(turnout, {1: 2.0, 2: 1.0}, 1) == [2]


def test_each_size_of_batch_is_measured_by_itself() -> None:
    turnout = Turnout(workers=2, own=1)
    computed(turnout, {1: 1.0, 2: 3.0}, 2 * TRIES, size=1)
    computed(turnout, {1: 9.0, 2: 5.0}, 2 * TRIES, size=8)
    assert computed(turnout, {1: 1.0, 2: 3.0}, 1, size=1) == [1]
    assert computed(turnout, {1: 9.0, 2: 5.0}, 1, size=8) == [2]


def test_who_has_company_gets_a_workers_own_threads_and_so_do_the_next() -> None:
    turnout = Turnout(workers=2, own=1)
    first = turnout.begin(1, more=False)
    second = turnout.begin(1, more=False)
    assert (first.threads, second.threads) == (2, 1)
    turnout.end(first, 1.0)
    turnout.end(second, 1.0)
    assert not first.alone
    chosen = computed(turnout, {1: 2.0, 2: 1.0}, 20)
    assert chosen[0] == 1, "company was there a moment ago"
    assert chosen[-1] == 2


def test_requests_that_wait_are_company() -> None:
    turnout = Turnout(workers=4, own=1)
    assert turnout.begin(1, more=True).threads == 1


def test_a_single_worker_has_its_own_threads_only() -> None:
    assert set(computed(Turnout(workers=1, own=3), {3: 1.0}, 50)) == {3}


@pytest.mark.anyio
async def test_the_engine_answers_alike_with_either(tmp_path: Path) -> None:
    used: set[int] = set()

    def conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        used.add(torch.get_num_threads())
        return Kernels().conv2d(x, weight, *rest)

    store = live.empty_store(tmp_path / "store")
    version = live.add(store, "birds", "clr")
    images = rig.pictures(store.backbone, 2, 5)
    expected = live.expected(store, version, images)
    before = torch.get_num_threads()
    async with live.serve(store, workers=3, worker_threads=1, kernels=Kernels(conv2d=conv2d)) as serving:
        await serving.infer(version, images)
        used.clear()
        for _ in range(2 * TRIES + 4):  # probes may have kept the first ones company
            rig.check(expected, (await serving.infer(version, images)).logits)
    assert used == {1, 3}
    torch.set_num_threads(before)
