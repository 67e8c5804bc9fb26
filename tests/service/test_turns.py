"""A lock that some hold together and one alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from service.engine.turns import Turns

SOON = 10.0
"""Seconds after which a thread is stuck."""


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_several_hold_it_together() -> None:
    turns, both = Turns(), threading.Barrier(2)

    def hold() -> None:
        with turns.together():
            both.wait(SOON)

    threads = [in_thread(hold) for _ in range(2)]
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert not both.broken


def test_who_is_alone_waits_for_those_before_and_keeps_off_those_after() -> None:
    turns, order = Turns(), list[str]()
    inside, leave, asked = threading.Event(), threading.Event(), threading.Event()

    def before() -> None:
        with turns.together():
            inside.set()
            leave.wait(SOON)
            order.append("before")

    def alone() -> None:
        asked.set()
        with turns.alone(), turns.together():  # its own forwards
            order.append("alone")

    def after() -> None:
        with turns.together():
            order.append("after")

    threads = [in_thread(before)]
    assert inside.wait(SOON)
    threads.append(in_thread(alone))
    assert asked.wait(SOON)
    while not turns.wanted:
        pass
    threads.append(in_thread(after))
    leave.set()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert order == ["before", "alone", "after"]


def test_many_that_come_and_go_never_meet_one_that_is_alone() -> None:
    turns, inside, met = Turns(), set[int](), list[int]()

    def beside(number: int) -> None:
        for _ in range(200):
            with turns.together():
                inside.add(number)
                inside.discard(number)

    def alone() -> None:
        for _ in range(200):
            with turns.alone():
                met.append(len(inside))

    threads = [in_thread(lambda number=number: beside(number)) for number in range(3)] + [in_thread(alone)]
    for thread in threads:
        thread.join(6 * SOON)
        assert not thread.is_alive()
    assert met == [0] * 200
