"""The door between the HTTP layer and the engine: asynchronous outside, threads inside; knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from masks_store import (
    DIMENSIONS,
    InvalidInput,
    NotFound,
    Prober,
    Store,
    lacks_instructions,
    projection,
)

from .batching import Batcher, QueuedRequest
from .engine import (
    DTYPES,
    DeadlinePassed,
    DeviceOverlay,
    Draining,
    Engine,
    Kernels,
    Logits,
    Pictures,
    Sight,
    computing_in,
    find_device,
)
from .following import Follower
from .loading import Loader
from .memory import cores, plan
from .probing import Checker, Probes
from .residency import Record, Residency
from .stats import Stats
from .workers import Answer, Work, Workers

log = logging.getLogger("taskpack.service")

WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class Inference:
    """The answer to a request.

    Attributes:
        logits: float32 [N, classes].
        queue_ms: from the call to the moment a worker took it up, loading included.
        infer_ms: from then to the end.
    """

    logits: Logits
    queue_ms: float
    infer_ms: float


class Serving:
    """Answers requests for versions of one store.

    Args:
        store: whose versions are served.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `fp32`, `bf16`, or `auto`: bf16 on a GPU, fp32 on a CPU.
        workers: forwards at once; by default a worker per core, or one on a GPU, where a second writes its task's
            weights while the first computes.
        worker_threads: threads inside a forward, on a CPU.
        max_batch: most images in a forward.
        queue_limit_s: longest estimated wait with which a request is accepted.
        max_delay_s: how long a request waits for others to share its batch, on a GPU; a CPU gains nothing by it.
        slot_bytes: memory for materialised views; planned from the machine's when None.
        host_bytes: memory for coded artifacts; planned when None.
        overlay_bytes: memory for tasks' own tensors on the device; planned when None.
        kernels: the operators to compute with.

    Raises:
        InvalidInput: no such device, or a network that cannot be served.
    """

    def __init__(
        self,
        store: Store,
        *,
        device: str = "auto",
        dtype: Literal["auto", "fp32", "bf16"] = "auto",
        workers: int | None = None,
        worker_threads: int = 1,
        max_batch: int = 32,
        queue_limit_s: float = 10.0,
        max_delay_s: float = 0.0,
        slot_bytes: int | None = None,
        host_bytes: int | None = None,
        overlay_bytes: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        found = find_device(device)
        self.dtype = ("bf16" if found.type == "cuda" else "fp32") if dtype == "auto" else dtype
        count = workers or (1 if found.type == "cuda" else cores())
        planned = plan(found)
        slots = planned.slots if slot_bytes is None else slot_bytes
        host = planned.host if host_bytes is None else host_bytes
        overlays = planned.overlays if overlay_bytes is None else overlay_bytes
        self._store = store
        self.image_size = store.backbone.manifest.image_size
        self._engine = Engine(
            store.backbone,
            device=str(found),
            slot_bytes=slots,
            readers=count + 1,  # the workers, and a registration's probe before they run
            kernels=kernels,
            threads=worker_threads,
        )
        slots = self._engine.slots.budget  # at least what the workers need at once; on a GPU no more than a few views
        self.chosen: dict[str, str | int] = {
            "device": str(found), "dtype": self.dtype, "workers": count, "slot_bytes": slots, "host_bytes": host
        }  # fmt: skip
        """Arguments as they hold, chosen here where they were left open."""
        delay = max_delay_s if found.type == "cuda" else 0.0
        self._batcher = Batcher(max_batch=max_batch, limit_s=queue_limit_s, workers=count, delay_s=delay)
        log.info("views and adapters are computed by %s", self._engine.computes)
        if lacks_instructions(DTYPES[self.dtype], found):
            log.warning(
                "this processor has no instructions for bfloat16 and imitates them: --dtype fp32 is faster here"
            )
        self._workers = Workers(self._engine, self._batcher, count, worker_threads)
        self._residency = Residency(store, self._engine, host_bytes=host, overlay_bytes=overlays)
        dtypes = ("fp32",) if self.dtype == "fp32" else ("bf16", "fp32")
        self._probes = Probes(store, self._engine, self._residency, self._run, dtypes)
        self._follower = Follower(self._residency)
        self._loader = Loader(self._residency, self._probes)
        self._checker = Checker(store, self._residency, self._probes)
        self._projection: DeviceOverlay | None = None
        self._inflight = 0
        self._idle = asyncio.Event()
        self._phase: Literal["new", "running", "stopping", "stopped"] = "new"

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Take in the store's versions and start the workers; unchecked versions are probed in the background."""
        await asyncio.to_thread(self._prepare_device)
        self._phase = "running"
        self._workers.start()
        if self._engine.device.type == "cuda":
            await asyncio.to_thread(self._warm_up)
        self._checker.start()

    async def stop(self, drain_timeout: float) -> None:
        """Refuse new requests, finish the accepted ones for at most `drain_timeout` seconds, fail the rest."""
        if self._phase != "running":
            return
        self._phase = "stopping"
        if self._inflight:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_timeout)
        self._phase = "stopped"
        self._batcher.close(Draining("the server stopped before this request's turn came"))
        await asyncio.to_thread(self._join)

    def _prepare_device(self) -> None:
        self._residency.start()
        self._probes.recall()
        images = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        blank = self._engine.bare(torch.zeros(1, self._store.backbone.features), self.dtype)
        if self._engine.device.type == "cpu" and self._engine.shared.claims():  # the pool is there; a view would stay
            blank = replace(blank, weights=self._engine.shared.pool(self.dtype))
        for threads in self._workers.threads():
            with computing_in(threads):
                for _ in range(2):  # the first pays for allocations, the second is the first guess at the pace
                    started = time.monotonic()
                    self._engine.run(Sight(self._store.backbone_digest, ()), self.dtype, [images], [blank])
                    self._batcher.pace_s = time.monotonic() - started

    def _warm_up(self) -> None:
        """Compute batches of every size that is recorded, in a worker's thread: cuDNN's choices are a thread's own.

        Otherwise the first request of a size would wait for them, a second or more, and everybody behind it.
        """
        blank = self._engine.bare(torch.zeros(1, self._store.backbone.features), self.dtype)
        side, most = self.image_size, self._batcher.max_batch
        for size in sorted({most, *(1 << power for power in range(most.bit_length()))}):
            images = np.zeros((size, side, side, 3), np.uint8)
            work = Work(Sight(self._store.backbone_digest, ()), self.dtype, images, blank)
            try:
                self._run(work)  # recorded
                started = time.monotonic()
                self._run(work)  # replayed
            except RuntimeError as error:  # too little memory for so many: requests will say so, too
                log.warning("a batch of %d pictures cannot be computed here: %s", size, error)
                return
            self._batcher.pace_s = (time.monotonic() - started) / size

    def _join(self) -> None:
        self._workers.join()
        self._checker.stop()
        self._loader.close()
        self._follower.close()

    # ------------------------------------------------------------ requests

    async def infer(self, version: str, images: Pictures, *, deadline: float | None = None) -> Inference:
        """Compute a version's logits.

        Args:
            version: a digest.
            images: uint8 [N, size, size, 3], at least one.
            deadline: by time.monotonic(); a request whose turn has not come by then is given up.

        Raises:
            NotFound: no such version here.
            VersionFailed: its probe fails on this device.
            QueueFull, DeadlinePassed, Draining: it was not this request's turn, and will not be.
            InvalidInput: images of another size or type.
        """
        called = time.monotonic()
        with self._accepted(images):
            record = await self._lease(version, deadline)
            try:
                task = await self._loader.loaded(record, deadline)
                lease = _Lease(self._residency, record)
                return await self._answer(record.sight, record.dtype, task, images, deadline, called, lease)
            finally:
                self._residency.release(record)

    async def project(self, images: Pictures, *, deadline: float | None = None) -> Inference:
        """The backbone's own features of pictures, projected: what names their task (`masks_store.TaskInference`).

        Args:
            images: uint8 [N, size, size, 3], at least one.
            deadline: as for `infer`.

        Returns:
            float32 [N, 128] as `logits`.

        Raises:
            InvalidInput: the backbone gives too few features; images of another size or type.
            QueueFull, DeadlinePassed, Draining: as for `infer`.
        """
        called = time.monotonic()
        backbone = self._store.backbone
        if backbone.features < DIMENSIONS:
            raise InvalidInput(f"this backbone gives {backbone.features} features, too few to name a task by")
        with self._accepted(images):
            if self._projection is None:
                matrix = await asyncio.to_thread(projection, backbone.digest, backbone.features)
                self._projection = self._engine.bare(matrix, "fp32")
            sight = Sight(backbone.digest, ())
            return await self._answer(sight, "fp32", self._projection, images, deadline, called, None)

    @contextlib.contextmanager
    def _accepted(self, images: Pictures) -> Generator[None]:
        """Counts a request in while it is answered.

        Raises:
            Draining: nothing is accepted now.
            InvalidInput: images of another size or type.
        """
        if self._phase != "running":
            raise Draining("the server is stopping" if self._phase != "new" else "the server has not started")
        self._check_images(images)
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1
            if not self._inflight:
                self._idle.set()

    def _check_images(self, images: Pictures) -> None:
        wanted = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
            came = f"{images.dtype} {list(images.shape)}"
            raise InvalidInput(f"images {came} where uint8 [N, {self.image_size}, {self.image_size}, 3] was expected")

    async def _lease(self, version: str, deadline: float | None) -> Record:
        while True:
            with contextlib.suppress(NotFound):
                return self._residency.lease(version)
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    whole = await self._follower.refresh()  # another process may just have registered it
            except TimeoutError:
                raise DeadlinePassed("the deadline passed while the store's changes were taken in") from None
            if whole:
                return self._residency.lease(version)
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlinePassed("the deadline passed while the version was waiting for a deleted one to be let go")
            if self._phase == "stopped":
                raise Draining("the server is stopping")
            await asyncio.sleep(WAIT_S)

    async def _answer(
        self,
        sight: Sight,
        dtype: str,
        task: DeviceOverlay,
        images: Pictures,
        deadline: float | None,
        called: float,
        lease: _Lease | None,
    ) -> Inference:
        loop = asyncio.get_running_loop()
        parts = [images[i : i + self._batcher.max_batch] for i in range(0, len(images), self._batcher.max_batch)]
        waiting: list[tuple[QueuedRequest, asyncio.Future[Answer]]] = []
        for part in parts:
            future: asyncio.Future[Answer] = loop.create_future()
            work = Work(sight, dtype, part, task)
            tell = _Tell(loop, future, lease)
            waiting.append((QueuedRequest(work.group, task.version, len(part), work, tell, deadline), future))
        if lease is not None:
            lease.extend(len(waiting))  # each part holds the version until a worker is done with it
        try:
            self._batcher.submit([request for request, _ in waiting])
        except BaseException:
            if lease is not None:
                lease.release(len(waiting))
            raise
        late = DeadlinePassed("the deadline passed before the request's turn came")
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._withdraw, waiting, late)
        try:
            answers = await asyncio.gather(*(future for _, future in waiting))
        finally:
            if timer is not None:
                timer.cancel()
            self._withdraw(waiting, None)
        taken = min(answer.taken_at for answer in answers)
        finished = max(answer.finished_at for answer in answers)
        logits = np.concatenate([answer.logits for answer in answers])
        return Inference(logits, (taken - called) * 1e3, (finished - taken) * 1e3)

    def _withdraw(self, waiting: Sequence[tuple[QueuedRequest, asyncio.Future[Answer]]], why: Exception | None) -> None:
        """Take back what no worker has taken yet: because it is late, or because nobody waits for it any more."""
        for request, _ in waiting:
            if self._batcher.withdraw(request):
                request.done(why or asyncio.CancelledError())

    # ------------------------------------------------------------ versions

    @property
    def prober(self) -> Prober:
        """Runs a version's probe through this engine, on its device, before the version is registered."""
        return self._probes.prober

    @property
    def lost(self) -> bool:
        """Whether the device computes nothing any more: only another process can."""
        return self._workers.lost

    def state(self, version: str) -> Literal["ready", "loading", "failed"]:
        """Where a version stands on this replica.

        Raises:
            NotFound: it is not here, or retired.
        """
        status = self._residency.status(version)
        if status == "retired":
            raise NotFound(f"version {version} is retired and answers no more")
        return status

    async def refresh(self) -> None:
        """Apply the store's new events, in order.

        Raises:
            Draining: the server is stopping.
        """
        await self._follower.refresh()
        self._checker.look()

    async def unload(self, version: str, timeout: float) -> bool:
        """Wait until no request uses a version, then give its memory back.

        Returns:
            False where requests outlast `timeout` seconds; it is unloaded when they end.
        """
        loop = asyncio.get_running_loop()
        unused = asyncio.Event()
        self._residency.when_unused(version, lambda: _on_loop(loop, unused.set))
        try:
            await asyncio.wait_for(unused.wait(), timeout)
        except TimeoutError:
            return False
        await self._follower.unload(version)
        return True

    def stats(self) -> Stats:
        """Figures for /metrics; may be called from any thread."""
        slots, depth = self._engine.slots, self._batcher.depth()
        size = self._workers.batch_size.read()
        return Stats(
            build=self._engine.build,
            device=self._engine.device_name,
            dtype=self.dtype,
            batch_size=size,
            batch_tasks=self._workers.batch_tasks.read(),
            batches=size.count,
            inferences=int(size.total),
            queue_requests=depth.requests,
            queue_images=depth.images,
            queue_wait_s=depth.wait_s,
            versions=self._residency.counts(),
            slot_bytes=slots.used,
            slot_hits=slots.hits,
            slot_misses=slots.misses,
            slot_load_seconds=slots.load_seconds.read(),
            slot_age_at_eviction_seconds=slots.eviction_age_seconds.read(),
        )

    # ------------------------------------------------------------ the engine's own work

    def _run(self, work: Work) -> Logits:
        """One work of the server's own, in turn with the requests; blocks."""
        if self._phase == "new":
            return self._run_here(work)
        outcome: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def tell(answer: Answer | Exception) -> None:
            if isinstance(answer, Exception):
                outcome.set_exception(answer)
            else:
                outcome.set_result(answer)

        self._batcher.submit(
            [QueuedRequest(work.group, work.task.version, len(work.images), work, tell)], bounded=False
        )
        return outcome.result().logits

    def _run_here(self, work: Work) -> Logits:
        return self._engine.run(work.sight, work.dtype, [work.images], [work.task])[0]


@dataclass(frozen=True, slots=True)
class _Lease:
    """A version that may not be let go; of several holders."""

    residency: Residency
    record: Record

    def extend(self, times: int) -> None:
        for _ in range(times):
            self.residency.extend(self.record)

    def release(self, times: int = 1) -> None:
        for _ in range(times):
            self.residency.release(self.record)


class _Tell:
    """Carries an outcome from a worker's thread to the event loop, and ends the request's lease. Called once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Answer], lease: _Lease | None) -> None:
        self._loop = loop
        self._future = future
        self._lease = lease

    def __call__(self, outcome: Any) -> None:
        if self._lease is not None:
            self._lease.release()
        _on_loop(self._loop, self._settle, outcome)

    def _settle(self, outcome: Answer | BaseException) -> None:
        if self._future.done():
            return
        if isinstance(outcome, asyncio.CancelledError):
            self._future.cancel()
        elif isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


def _on_loop(loop: asyncio.AbstractEventLoop, call: Any, *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
        loop.call_soon_threadsafe(call, *args)
