"""The queue: its bound, its turns, and what it drops before it costs anything."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import MOST_HEAD_START_S, Batcher, QueuedRequest, State
from service.engine import DeadlinePassed, Draining, QueueFull


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A queue with a clock of its own, and a record of what every request was told."""

    def __init__(
        self,
        *,
        max_batch: int = 4,
        limit_s: float = 1e9,
        workers: int = 1,
        pace_s: float = 1.0,
        delay_s: float = 0.0,
    ) -> None:
        self.clock = Clock()
        self.queue = Batcher(
            max_batch=max_batch, limit_s=limit_s, workers=workers, pace_s=pace_s, delay_s=delay_s, clock=self.clock
        )
        self.told: dict[str, list[Any]] = {}

    def request(
        self, name: str, group: Hashable, version: str = "", size: int = 1, deadline: float | None = None
    ) -> QueuedRequest:
        told = self.told.setdefault(name, [])
        return QueuedRequest(group, version or str(group), size, name, told.append, deadline)

    def submit(
        self, name: str, group: Hashable, version: str = "", size: int = 1, deadline: float | None = None
    ) -> QueuedRequest:
        request = self.request(name, group, version, size, deadline)
        self.queue.submit([request])
        return request

    def take(self, *loaded: Hashable) -> list[str]:
        batch = self.queue.take(lambda group: group in loaded)
        assert batch is not None
        return [request.work for request in batch]


def test_requests_of_one_group_share_a_batch_and_others_wait() -> None:
    bench = Bench()
    for name, group in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")]:
        bench.submit(name, group)
    assert bench.take() == ["a1", "a2"]
    assert bench.take() == ["b1", "b2"]
    assert bench.queue.depth().requests == 0


def test_a_batch_holds_at_most_max_batch_images() -> None:
    bench = Bench(max_batch=4)
    for i in range(3):
        bench.submit(f"a{i}", "a", size=3)
    assert [bench.take() for _ in range(3)] == [["a0"], ["a1"], ["a2"]]


def test_a_request_larger_than_a_batch_goes_alone() -> None:
    bench = Bench(max_batch=2)
    bench.submit("small", "a", "v")
    bench.submit("large", "a", "w", size=5)
    assert [bench.take(), bench.take()] == [["small"], ["large"]]


def test_under_a_flood_the_other_group_comes_after_one_batch() -> None:
    bench = Bench(max_batch=4)
    for i in range(100):
        bench.submit(f"flood {i}", "a")
    bench.submit("lone", "b")
    turns = [bench.take() for _ in range(3)]
    assert ["lone"] in turns[:2]


def test_within_a_group_every_version_has_its_turn_under_a_flood() -> None:
    bench = Bench(max_batch=4)
    for i in range(100):
        bench.submit(f"flood {i}", "base", "loud")
    for version in ("x", "y"):
        bench.submit(version, "base", version)
    assert {"x", "y"} <= set(bench.take())


def test_versions_that_a_batch_had_no_room_for_come_first_in_the_next() -> None:
    bench = Bench(max_batch=2)
    for version in "vwxyz":
        for i in range(2):
            bench.submit(f"{version}{i}", "base", version)
    assert [bench.take() for _ in range(5)] == [["v0", "w0"], ["x0", "y0"], ["z0", "v1"], ["w1", "x1"], ["y1", "z1"]]


def test_a_group_whose_weights_are_loaded_goes_first_until_another_has_waited_too_long() -> None:
    bench = Bench(max_batch=1)
    for i in range(10):
        bench.submit(f"hot {i}", "hot")
    bench.submit("cold", "cold")
    assert [bench.take("hot")[0] for _ in range(3)] == ["hot 0", "hot 1", "hot 2"]
    bench.clock.now += 0.5
    assert bench.take("hot") == ["cold"]


def test_two_floods_take_turns_once_both_have_waited() -> None:
    bench = Bench(max_batch=1)
    for i in range(20):
        bench.submit(f"a{i}", "a")
        bench.submit(f"b{i}", "b")
    bench.clock.now += 10
    counted: Counter[str] = Counter()
    for _ in range(20):
        counted[bench.take("a")[0][0]] += 1
        bench.clock.now += 1  # as long as one takes
    assert counted == {"a": 10, "b": 10}


def test_who_asks_often_is_not_passed_for_ever_by_those_who_ask_for_the_first_time() -> None:
    """16 callers who ask for another of countless tasks each time, and one who always asks for the same."""
    bench = Bench(max_batch=4)
    for i in range(16):
        bench.submit(f"first {i}", f"task {i}")
    bench.submit("same", "same")
    asked, waits = bench.clock.now, list[float]()
    for turn in range(400):
        (name,) = bench.take()
        bench.clock.now += 1
        if name == "same":
            waits.append(bench.clock.now - asked)
            asked = bench.clock.now
            bench.submit("same", "same")
        else:
            bench.submit(f"next {turn}", f"task {16 + turn}")
    round_s = 17  # one of each that waits
    assert len(waits) > 400 / (round_s + 2)
    assert max(waits) <= round_s + MOST_HEAD_START_S + 1


def test_a_task_that_had_no_turn_for_long_goes_ahead_of_who_came_within_its_head_start() -> None:
    bench = Bench(max_batch=1, pace_s=0.01)
    for group in "abc":
        bench.submit(f"{group} early", group)
        assert bench.take() == [f"{group} early"]
    bench.clock.now += 1.0
    bench.submit("a", "a")  # a second after its turn, so a tenth of it ahead: by 0.9
    bench.clock.now += 0.5
    bench.submit("b", "b")  # by 1.35
    bench.clock.now += 0.45
    bench.submit("new", "new")  # never asked for, so a second ahead: by 0.95
    bench.clock.now += 0.05
    bench.submit("c", "c")  # by 1.8
    assert [bench.take()[0] for _ in range(4)] == ["a", "new", "b", "c"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.sampled_from("abcdef")),
            st.tuples(st.just("take")),
            st.tuples(st.just("wait"), st.floats(0.01, 3)),
        ),
        max_size=80,
    )
)
def test_nobody_is_passed_by_who_came_after_him_and_his_group_s_turn_by_more_than_a_head_start(
    steps: list[tuple[Any, ...]],
) -> None:
    bench = Bench(pace_s=0.5)
    waiting: list[QueuedRequest] = []
    ended: dict[Hashable, float] = {}
    for step in steps:
        if step[0] == "submit":
            waiting.append(bench.submit(str(len(waiting)), step[1]))
        elif step[0] == "wait":
            bench.clock.now += step[1]
        elif waiting:
            batch = bench.queue.take(lambda _: True)
            assert batch
            waiting = [request for request in waiting if request not in batch]
            for passed in waiting:
                if passed.group != batch[0].group:
                    since = max(passed.queued_at, ended.get(passed.group, 0.0))
                    assert batch[0].queued_at <= since + MOST_HEAD_START_S
            ended[batch[0].group] = bench.clock.now + 0.5 * len(batch)


def test_a_queue_that_would_wait_too_long_is_full_and_says_when_to_come_back() -> None:
    bench = Bench(limit_s=10.0, workers=2, pace_s=1.0)
    for i in range(21):
        bench.submit(f"a{i}", "a")
    with pytest.raises(QueueFull) as full:
        bench.submit("late", "a")
    assert full.value.retry_after_s == pytest.approx(0.5)  # 21 images of 1 s on two workers are 10.5 s
    assert bench.queue.depth().requests == 21
    bench.take()
    bench.submit("now", "a")


def test_an_empty_queue_takes_any_request_whole() -> None:
    bench = Bench(limit_s=0.001, pace_s=100.0)
    parts = [bench.request(f"part {i}", "a", size=4) for i in range(3)]
    bench.queue.submit(parts)
    assert bench.queue.depth().images == 12


def test_the_server_s_own_work_is_never_turned_away() -> None:
    bench = Bench(limit_s=0.001, pace_s=100.0)
    bench.submit("a", "a")
    bench.queue.submit([bench.request("own", "b")], bounded=False)
    assert bench.queue.depth().requests == 2


def test_the_estimate_follows_the_measured_pace() -> None:
    bench = Bench(pace_s=1.0)
    bench.submit("a", "a", size=4)
    for _ in range(50):
        bench.queue.served(10, 20.0)
    assert bench.queue.depth().wait_s == pytest.approx(8.0, rel=1e-3)


def test_late_requests_are_told_so_and_are_in_no_batch() -> None:
    bench = Bench()
    bench.submit("late", "a", deadline=bench.clock.now + 1)
    bench.submit("timely", "a", deadline=bench.clock.now + 5)
    bench.clock.now += 2
    assert bench.take() == ["timely"]
    assert [type(told) for told in bench.told["late"]] == [DeadlinePassed]
    assert bench.queue.depth().images == 0


def test_a_withdrawn_request_is_in_no_batch_and_makes_room() -> None:
    bench = Bench()
    gone = bench.submit("gone", "a", size=3)
    bench.submit("stays", "a")
    assert bench.queue.withdraw(gone)
    assert bench.queue.depth().images == 1
    assert bench.take() == ["stays"]
    assert not bench.queue.withdraw(gone)
    assert bench.told["gone"] == [], "whoever withdraws it knows"


def test_a_request_that_a_worker_has_cannot_be_withdrawn() -> None:
    bench = Bench()
    request = bench.submit("a", "a")
    bench.take()
    assert request.state is State.TAKEN
    assert not bench.queue.withdraw(request)


def test_a_closed_queue_tells_who_waits_and_takes_no_more() -> None:
    bench = Bench()
    bench.submit("waiting", "a")
    bench.queue.close(Draining("stopping"))
    assert isinstance(bench.told["waiting"][0], Draining)
    assert bench.queue.take(lambda _: True) is None
    with pytest.raises(Draining):
        bench.submit("after", "a")


def test_closing_wakes_workers_that_wait() -> None:
    bench = Bench()
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(bench.queue.take(lambda _: True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    bench.queue.close(Draining("stopping"))
    for thread in threads:
        thread.join(10)
    assert got == [None, None, None]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abc"), st.sampled_from("uvw"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("withdraw"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0, 1)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_every_request_ends_exactly_once_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    """Taken, late, withdrawn or failed at the end: one of them, and the counts always agree."""
    bench = Bench()
    requests: list[QueuedRequest] = []
    ended: Counter[int] = Counter()
    for step in steps:
        if step[0] == "submit":
            deadline = bench.clock.now + 0.5 if step[4] else None
            requests.append(bench.submit(str(len(requests)), step[1], step[2], step[3], deadline))
        elif step[0] == "wait":
            bench.clock.now += step[1]
        elif step[0] == "withdraw" and step[1] < len(requests):
            ended[step[1]] += bench.queue.withdraw(requests[step[1]])
        elif step[0] == "take" and any(r.state is State.QUEUED and r.deadline is None for r in requests):
            batch = bench.take("a")
            assert sum(requests[int(name)].size for name in batch) <= 4
            assert len({requests[int(name)].group for name in batch}) == 1
            ended.update(int(name) for name in batch)
        waiting = [r for r in requests if r.state is State.QUEUED]
        assert bench.queue.depth().requests == len(waiting)
        assert bench.queue.depth().images == sum(r.size for r in waiting)
    bench.queue.close(Draining("stopping"))
    ended.update(int(name) for name, told in bench.told.items() for _ in told)
    assert ended == Counter(range(len(requests)))


def test_with_a_delay_a_full_batch_goes_at_once_and_a_small_one_when_its_first_has_waited_that_long() -> None:
    bench = Bench(max_batch=4, delay_s=5.0)
    bench.submit("small", "a")
    bench.submit("big1", "b", size=3)
    bench.submit("big2", "b")
    assert bench.take("a") == ["big1", "big2"]  # though the other group is loaded
    bench.clock.now += 4.0
    bench.submit("late", "a")
    bench.submit("other", "c")
    bench.clock.now += 1.0
    assert bench.take() == ["small", "late"]
    bench.clock.now += 4.0
    assert bench.take() == ["other"]


def test_a_worker_that_waits_for_a_batch_to_fill_takes_it_when_it_is_full() -> None:
    bench = Bench(max_batch=2, delay_s=3600.0)  # by a clock that stands still
    taken: list[list[str]] = []
    worker = threading.Thread(target=lambda: taken.append(bench.take()), daemon=True)
    bench.submit("first", "a")
    worker.start()
    bench.submit("second", "a")
    worker.join(60)
    assert taken == [["first", "second"]]


def test_a_request_that_is_withdrawn_no_longer_fills_a_batch() -> None:
    bench = Bench(max_batch=2, delay_s=5.0)
    first = bench.submit("first", "a")
    bench.submit("second", "a")
    bench.submit("alone", "b")
    assert bench.queue.withdraw(first)
    bench.submit("third", "b")
    assert bench.take("a") == ["alone", "third"]
    bench.clock.now += 5.0
    assert bench.take() == ["second"]


def test_closing_wakes_a_worker_that_waits_for_a_batch_to_fill() -> None:
    bench = Bench(delay_s=3600.0)
    bench.submit("first", "a")
    found: list[object] = ["nothing"]
    worker = threading.Thread(target=lambda: found.append(bench.queue.take(lambda _: False)), daemon=True)
    worker.start()
    bench.queue.close(Draining("the end"))
    worker.join(60)
    assert found == ["nothing", None]
