"""Threads that own the device: each takes a batch from the queue, runs it on the engine and tells every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from .batching import Batcher, QueuedRequest
from .engine import DeviceOverlay, Engine, Figure, Logits, Pictures, Sight
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
        threads: what each may use inside an operator, on a CPU; one that is alone uses the others' too.
        clock: the queue's.
    """

    def __init__(
        self, engine: Engine, batcher: Batcher, count: int, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._turnout = Turnout(count, threads)
        self._clock = clock
        self._running = [threading.Thread(target=self._loop, name=f"engine-{i}", daemon=True) for i in range(count)]
        self.batch_size = Figure((1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batch_tasks = Figure((1, 2, 4, 8, 16, 32, 64))

    def start(self) -> None:
        """Begin to take batches."""
        for thread in self._running:
            thread.start()

    def threads(self) -> tuple[int, ...]:
        """Numbers of threads that may compute a batch on a CPU, the usual one last."""
        return tuple(dict.fromkeys((self._turnout.all, self._turnout.own)))

    def join(self) -> None:
        """Wait until all have ended, which they do when the queue is closed and their batch is done."""
        for thread in self._running:
            if thread.ident is not None:
                thread.join()

    def _loop(self) -> None:
        while (batch := self._batcher.take(self._loaded)) is not None:
            started = self._clock()
            images = sum(request.size for request in batch)
            self.batch_size.add(images)
            self.batch_tasks.add(len({request.version for request in batch}))
            turn = self._turnout.begin(images, more=self._batcher.depth().requests > 0)
            if self._engine.device.type == "cpu":
                torch.set_num_threads(turn.threads)  # OpenMP's number is this thread's own
            self._serve(batch)
            took = self._clock() - started
            self._turnout.end(turn, took)
            if turn.threads == self._turnout.own:  # as it will be when many come
                self._batcher.served(images, took)
            del batch  # the images and the task go before the next wait

    def _loaded(self, group: Hashable) -> bool:
        assert isinstance(group, Group)
        return isinstance(group.weights, str) or self._engine.resident(group.weights, group.dtype)

    def _serve(self, batch: Sequence[QueuedRequest]) -> None:
        try:
            logits = self._run(batch)
        except Exception as error:
            self._fail(batch, error)
            return
        now = self._clock()
        for request, own in zip(batch, logits, strict=True):
            request.done(Answer(own, request.taken_at, now))

    def _fail(self, batch: Sequence[QueuedRequest], error: Exception) -> None:
        """One version may have broken a batch for the others: each is run alone, and only the culprit is told."""
        versions = dict.fromkeys(request.version for request in batch)
        if len(versions) > 1:
            for version in versions:
                self._serve([request for request in batch if request.version == version])
            return
        log.error("a forward failed for version %s", batch[0].version, exc_info=error)
        for request in batch:
            request.done(error)

    def _run(self, batch: Sequence[QueuedRequest]) -> list[Logits]:
        works: list[Work] = [request.work for request in batch]
        first = works[0]
        images, tasks = [work.images for work in works], [work.task for work in works]
        return self._engine.run(first.sight, first.dtype, images, tasks)
