"""Callers who ask again as soon as they are answered, each time for a task and a picture drawn at random."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from .servers import Server, Started
from .tasks import Expected, Tasks

START_S = 180.0
ANSWER_S = 120.0


class PeerFailed(Exception):
    """A server that did not start, answers with an error, or answers wrongly."""


@dataclass(frozen=True)
class Agreement:
    """Answers compared with the reference's.

    Attributes:
        answers: how many.
        same: of them have the reference's best class.
        error: largest difference of their scores.
    """

    answers: int
    same: int
    error: float


@dataclass
class Slice:
    """What a server did in some seconds.

    Attributes:
        seconds: from the first request to the last answer.
        waits: seconds that each request took.
    """

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list[float])

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.waits) / self.seconds


class Callers:
    """Callers of one running server; they keep their connections.

    Args:
        server: what it is.
        running: where.
        tasks: what it serves.
        names: the tasks that are asked for.
        connections: callers.
    """

    def __init__(self, server: Server, running: Started, tasks: Tasks, names: Sequence[str], connections: int) -> None:
        self._server, self._running, self._tasks = server, running, tasks
        self._names, self._connections = list(names), connections
        self._draw = random.Random(0)
        limits = httpx.Limits(max_connections=connections, keepalive_expiry=None)
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(base_url=running.url, timeout=ANSWER_S, limits=limits, trust_env=False)

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()

    def wait_until_ready(self) -> None:
        """Ask until the first answer.

        Raises:
            PeerFailed: it ended, or takes too long.
        """
        self._runner.run(self._until_ready())

    async def _until_ready(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._running.alive():
            try:
                await self._ask(self._names[0], 0)
            except (httpx.TransportError, PeerFailed):
                await asyncio.sleep(0.2)
            else:
                return
        told = self._running.log.read_text(errors="replace")[-2000:]
        raise PeerFailed(f"{self._server.name} did not start; it says:\n{told}")

    def compare(self) -> Agreement:
        """Ask for every picture of every task, and compare with the slow reference."""
        return self._runner.run(self._compare())

    async def _compare(self) -> Agreement:
        wanted = [(name, i, self._tasks.expected[name][i]) for name in self._names for i in range(self._files)]
        found = await asyncio.gather(*(self._ask(name, i) for name, i, _ in wanted))
        pairs: list[tuple[tuple[int, float], Expected]] = [
            (answer, reference) for answer, (_, _, reference) in zip(found, wanted, strict=True)
        ]
        same = sum(label == reference.label for (label, _), reference in pairs)
        return Agreement(len(pairs), same, max(abs(score - reference.score) for (_, score), reference in pairs))

    @property
    def _files(self) -> int:
        return len(self._tasks.files)

    def ask(self, seconds: float) -> Slice:
        """All callers at once, for some seconds."""
        return self._runner.run(self._ask_for(seconds))

    async def _ask_for(self, seconds: float) -> Slice:
        found, start = Slice(), time.perf_counter()

        async def caller() -> None:
            while (asked := time.perf_counter()) < start + seconds:
                await self._ask(self._draw.choice(self._names), self._draw.randrange(self._files))
                found.waits.append(time.perf_counter() - asked)

        await asyncio.gather(*(caller() for _ in range(self._connections)))
        found.seconds = time.perf_counter() - start
        return found

    async def _ask(self, task: str, file: int) -> tuple[int, float]:
        answer = await self._http.request("POST", **self._server.asked(task, self._tasks.files[file]))
        if not answer.is_success:
            raise PeerFailed(f"{self._server.name} answers {answer.status_code}: {answer.text[:300]}")
        return self._server.answer(answer.json())
