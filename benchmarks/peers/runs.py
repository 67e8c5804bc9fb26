"""Measure the servers in turns: each is started, checked, warmed up, put under load and ended, round after round."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .load import Callers, PeerFailed
from .memory import memory_of
from .servers import Server, started
from .tasks import Tasks

PERCENTILES = (50, 90, 99)
LEAST_SAME = 0.9
"""Share of the answers that must have the reference's class: bfloat16 may turn a near tie, a wrong network more."""


@dataclass(frozen=True)
class Run:
    """One server under load, once.

    Attributes:
        server: its name.
        tasks: how many are asked for, in equal shares.
        round: counted from 1.
        rate: requests a second.
        latency_ms: percentile -> milliseconds that a request took.
        memory: bytes (PSS) of all its processes at the end.
        answers, same, error: see `load.Agreement`.
    """

    server: str
    tasks: int
    round: int
    rate: float
    latency_ms: dict[str, float]
    memory: int
    answers: int
    same: int
    error: float

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    servers: Sequence[Server],
    stores: Sequence[Tasks],
    pythons: Mapping[str, str],
    *,
    rounds: int,
    seconds: float,
    connections: int,
    say: Callable[[str], None],
) -> Generator[Run]:
    """Each server with each number of tasks, once a round, in an order that turns from round to round.

    Args:
        servers: the contestants.
        stores: what they serve, one number of tasks after the other.
        pythons: the interpreter of each of the peers' environments.
        rounds: how often each is measured.
        seconds: under load, each time; a third of it before, to warm up.
        connections: callers at once.
        say: told what is left out and why.
    """
    for turn in range(1, rounds + 1):
        for tasks in stores:
            for server in servers if turn % 2 else list(reversed(servers)):
                try:
                    yield one(server, tasks, pythons, turn, seconds, connections)
                except PeerFailed as error:
                    say(f"left out: {error}")


def one(server: Server, tasks: Tasks, pythons: Mapping[str, str], turn: int, seconds: float, connections: int) -> Run:
    """Start, check, warm up, measure, end.

    Raises:
        PeerFailed: it does not start, fails under load, or answers wrongly.
    """
    with (
        started(server, tasks, pythons) as running,
        Callers(server, running, tasks, tasks.names, connections) as callers,
    ):
        callers.wait_until_ready()
        agreed = callers.compare()
        if agreed.same < LEAST_SAME * agreed.answers:
            raise PeerFailed(f"{server.name}: {agreed.same} of {agreed.answers} answers are the reference's")
        callers.ask(seconds / 3)
        found = callers.ask(seconds)
        latency = np.percentile(found.waits, PERCENTILES) * 1e3
        waits = {f"p{p}": float(ms) for p, ms in zip(PERCENTILES, latency, strict=True)}
        memory = memory_of(running.mark)
    return Run(
        server.name, len(tasks.names), turn, found.rate, waits, memory, agreed.answers, agreed.same, agreed.error
    )
