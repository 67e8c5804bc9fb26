"""Threads that own the device: each takes a batch from the queue, runs it on the engine and tells every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from .batching import Batcher, QueuedRequest
from .engine import DeviceOverlay, Engine, Figure, Logits, Pictures, Sight, computing_in
from .memory import cores
from .turnout import Turnout

log = logging.getLogger("taskpack.service")


@dataclass(frozen=True, slots=True)
class Group:
    """What requests must have in common to share a forward.

    Attributes:
        weights: the shared weights that they see; or the key of those that came with them (`DeviceOverlay.weights`): a
            smaller network, which tasks of equal units have in common, or a view that is in no pool yet.
        dtype: `fp32` or `bf16`.
    """

    weights: Sight | str
    dtype: str


@dataclass(frozen=True, slots=True)
class Work:
    """What a request brings to the engine.

    Attributes:
        sight: the shared weights that its task sees.
        dtype: `fp32` or `bf16`.
        images: uint8 [n, H, W, 3].
        task: on the device.
    """

    sight: Sight
    dtype: str
    images: Pictures
    task: DeviceOverlay

    @property
    def group(self) -> Group:
        """Works with equal groups may share a forward."""
        own = self.task.weights
        return Group(self.sight if own is None else own.key, self.dtype)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of a request.

    Attributes:
        logits: float32 [n, classes].
        taken_at, finished_at: seconds, by the queue's clock.
    """

    logits: Logits
    taken_at: float
    finished_at: float


class Workers:
    """Worker threads.

    Args:
        engine: the device.
        batcher: where batches come from.
        count: threads.
        threads: what each may use inside an operator, on a CPU; the first one takes the others' too while it is alone.
        clock: the queue's.
    """

    def __init__(
        self, engine: Engine, batcher: Batcher, count: int, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        most = min(count * threads, cores()) if engine.device.type == "cpu" else threads
        self._turnout = Turnout(threads, most)
        self._clock = clock
        self._running = [
            threading.Thread(target=self._loop, args=(i,), name=f"engine-{i}", daemon=True) for i in range(count)
        ]
        self.batch_size = Figure((1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batch_tasks = Figure((1, 2, 4, 8, 16, 32, 64))
        self.lost = False
        """Whether the device was found to compute nothing any more."""

    def start(self) -> None:
        """Begin to take batches."""
        for thread in self._running:
            thread.start()

    def threads(self) -> tuple[int, ...]:
        """Numbers of threads that may compute a batch on a CPU, the usual one last."""
        return tuple(dict.fromkeys((self._turnout.most, self._turnout.own)))

    def join(self) -> None:
        """Wait until all have ended, which they do when the queue is closed and their batch is done."""
        for thread in self._running:
            if thread.ident is not None:
                thread.join()

    def _loop(self, number: int) -> None:
        if self._engine.device.type == "cpu":
            torch.set_num_threads(self._turnout.own)  # OpenMP's number is this thread's own
        while (batch := self._batcher.take(self._loaded, number)) is not None:
            started = self._clock()
            images = sum(request.size for request in batch)
            self.batch_size.add(images)
            self.batch_tasks.add(len({request.version for request in batch}))
            kind = batch[0].group, images
            turn = self._turnout.begin(kind, self._batcher.depth().requests > 0, first=number == 0)
            outcomes = self._outcomes(batch, turn.threads)
            took = self._clock() - started
            self._turnout.end(turn, took)
            if turn.threads == self._turnout.own:  # as it will be when many come
                self._batcher.served(images, took)
            _tell(batch, outcomes)
            del batch, outcomes  # the images and the task go before the next wait

    def _loaded(self, group: Hashable) -> bool:
        assert isinstance(group, Group)
        return isinstance(group.weights, str) or self._engine.resident(group.weights, group.dtype)

    def _outcomes(self, batch: Sequence[QueuedRequest], threads: int) -> list[Answer | Exception]:
        """What each request is told."""
        try:
            if threads == self._turnout.own:
                logits = self._run(batch)
            else:
                with computing_in(threads):
                    logits = self._run(batch)
        except Exception as error:
            return self._alone(batch, error)
        now = self._clock()
        return [Answer(own, request.taken_at, now) for request, own in zip(batch, logits, strict=True)]

    def _alone(self, batch: Sequence[QueuedRequest], error: Exception) -> list[Answer | Exception]:
        """One version may have broken a batch for the others: each is run alone, and only the culprit is told."""
        versions = dict.fromkeys(request.version for request in batch)
        if not self.lost and not self._engine.answers():
            self.lost = True
            log.critical("%s computes nothing any more; the server has to be started anew", self._engine.device_name)
        if len(versions) == 1 or self.lost:
            log.error("a forward failed for version %s", batch[0].version, exc_info=error)
            return [error] * len(batch)
        told: dict[int, Answer | Exception] = {}
        for version in versions:
            own = [i for i, request in enumerate(batch) if request.version == version]
            told |= zip(own, self._outcomes([batch[i] for i in own], self._turnout.own), strict=True)
        return [told[i] for i in range(len(batch))]

    def _run(self, batch: Sequence[QueuedRequest]) -> list[Logits]:
        works: list[Work] = [request.work for request in batch]
        first = works[0]
        images, tasks = [work.images for work in works], [work.task for work in works]
        return self._engine.run(first.sight, first.dtype, images, tasks)


def _tell(batch: Sequence[QueuedRequest], outcomes: Sequence[Answer | Exception]) -> None:
    for request, outcome in zip(batch, outcomes, strict=True):
        request.done(outcome)
