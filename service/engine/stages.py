"""Forwards in static memory, recorded once and replayed in one launch.

A recording computes at the addresses that it was made with. So every set of weights has a stage: a stream of its own,
and for each size of batch static memory for pixels and features. All work on those weights goes through their stage's
stream, writing them included; so it happens in order, and the next task's weights are written while another stage
computes. A batch is filled up to the next size with whatever the memory holds, and those rows are ignored.

What records is passed in: CUDA graphs (`gpu/graphs.py`), or in tests something that only runs the forward again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from masks_store import probe_faults

from .layout import Weights
from .turns import Turns

log = logging.getLogger("taskpack.service")

LARGEST = 1024
"""Images of the largest batch that is recorded."""

TURNS = Turns()
"""Of all engines in the process. While one thread records, no other may have cuDNN look for its algorithms: that stops
the whole device for a moment, which no recording survives. Replaying disturbs nobody."""

Pictures = npt.NDArray[np.uint8]

Compute = Callable[[Tensor, Tensor], Tensor]
"""(uint8 [n, H, W, 3], what else the forward reads) -> float32 [n, features]; reads and writes no other address that
could change."""


class Recorded(NamedTuple):
    """What runs the recorded work again, and the bytes of device memory that it keeps."""

    replay: Callable[[], None]
    nbytes: int


class RecordingBroken(RuntimeError):
    """A recording failed after it had begun, and may have left the device's allocator in a state of its own."""


class Capture(Protocol):
    """How to record; a function."""

    def __call__(self, work: Callable[[], None], stream: torch.cuda.Stream | None) -> Recorded:
        """Record `work`, which reads and writes static memory only; `stream` is where that was brought in.

        Raises:
            RecordingBroken: it cannot be recorded, and nothing should be any more.
            RuntimeError: it cannot be recorded.
        """
        ...


@contextmanager
def _searching() -> Generator[None]:
    """Let cuDNN try its algorithms in the block: before a thread's first forward of a shape, or it keeps a guess."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def bucket_of(images: int) -> int:
    """The size of batch that is computed for so many images: the next power of two."""
    return 1 << (images - 1).bit_length()


@dataclass(eq=False)
class Recording:
    """One size of batch: static memory, and how to compute in it.

    Attributes:
        host: uint8 [bucket, H, W, 3], pinned where the device is a GPU.
        pixels: the same on the device.
        given: what else the forward reads.
        features: float32 [bucket, features], the result; None until the first run.
        replay: computes `features` from `pixels` and `given`.
        nbytes: of the device's memory.
        used_at: rises with every use, over all stages.
    """

    host: Tensor
    pixels: Tensor
    given: Tensor
    features: Tensor | None = None
    replay: Callable[[], None] | None = None
    nbytes: int = 0
    used_at: int = 0

    def put(self, images: Sequence[Pictures], given: Tensor) -> None:
        """Bring a batch in."""
        count, target = 0, self.host.numpy()
        for part in images:
            target[count : count + len(part)] = part
            count += len(part)
        if self.pixels is not self.host:
            self.pixels[:count].copy_(self.host[:count], non_blocking=True)
        self.given.copy_(given, non_blocking=True)


@dataclass(eq=False)
class Stage:
    """Where the forwards of one set of weights run.

    Attributes:
        stream: None on a CPU.
        alone: whether one forward at a time, as static memory and a stream of its own want it.
        lock: whoever holds it runs, or changes `recordings`.
        recordings: by form and size of batch.
    """

    stream: torch.cuda.Stream | None
    alone: bool
    lock: threading.RLock = field(default_factory=threading.RLock)  # pyright: ignore[reportUnknownVariableType]
    recordings: dict[tuple[str, int], Recording] = field(default_factory=dict[tuple[str, int], Recording])

    def held(self) -> AbstractContextManager[object]:
        """Nobody else runs a forward on these weights in the block, where `alone`."""
        return self.lock if self.alone else nullcontext()

    def queue(self) -> AbstractContextManager[object]:
        """What is launched in the block comes after all that was launched for these weights before."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Stages:
    """All stages of an engine.

    Args:
        device: where they are.
        side: height and width of an image.
        capture: how to record; None: forwards run as they come, and nothing is static.
        budget: bytes of device memory for recordings; the least recently used go first.
    """

    def __init__(self, device: torch.device, side: int, capture: Capture | None, budget: int) -> None:
        self.device = device
        self.capture = capture
        self._takes_turns = capture is not None  # also once nothing is recorded here any more: another engine may
        self.budget = budget
        self._side = side
        self._stages: WeakKeyDictionary[Weights, Stage] = WeakKeyDictionary()
        self._lock = threading.Lock()  # of the dict
        self._clock = 0

    def of(self, weights: Weights) -> Stage:
        """The stage of these weights; gone with them."""
        with self._lock:
            if weights not in self._stages:
                stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
                self._stages[weights] = Stage(stream, stream is not None or self.capture is not None)
            return self._stages[weights]

    def computing(self) -> AbstractContextManager[object]:
        """Hold around a forward that is not recorded: none runs while another is being recorded."""
        return TURNS.together() if self._takes_turns else nullcontext()

    @property
    def nbytes(self) -> int:
        """Bytes that recordings keep on the device."""
        return sum(recording.nbytes for _, _, recording in self._all())

    def run(
        self,
        stage: Stage,
        form: str,
        dtype: str,
        images: Sequence[Pictures],
        given: Tensor,
        compute: Compute,
    ) -> Tensor | None:
        """Replay a forward; recorded first where that has not happened yet, compared with the plain one then.

        Args:
            stage: of the weights that `compute` reads, locked and with its queue entered by the caller.
            form: names what is computed; the same form of a stage always means the same `compute`.
            dtype: that it computes in, for the comparison.
            images: uint8 [n, H, W, 3] each, together the batch.
            given: brought in with every batch, always of one length for this form and `bucket_of` this batch.
            compute: the plain forward.

        Returns:
            float32 [images, features], valid until the stage's next run; None where this batch is not recorded.
        """
        count = sum(len(part) for part in images)
        if self.capture is None or not 0 < count <= LARGEST:
            return None
        bucket = bucket_of(count)
        recording = stage.recordings.get((form, bucket))
        if recording is None:
            recording = self._static(bucket, given)
        recording.put(images, given)
        if recording.replay is None:
            self._record(stage, (form, bucket), recording, compute, dtype)
        else:
            recording.replay()
        self._clock += 1
        recording.used_at = self._clock
        assert recording.features is not None
        return recording.features[:count]

    def _static(self, bucket: int, given: Tensor) -> Recording:
        host = torch.zeros((bucket, self._side, self._side, 3), dtype=torch.uint8)
        if self.device.type == "cuda":
            host = host.pin_memory()
        pixels = host.to(self.device) if self.device.type == "cuda" else host
        static = torch.zeros_like(given, device=self.device)
        return Recording(host, pixels, static, nbytes=pixels.nbytes + static.nbytes)

    def _record(
        self,
        stage: Stage,
        key: tuple[str, int],
        recording: Recording,
        compute: Compute,
        dtype: str,
    ) -> None:
        """Fill `recording`: its features are this batch's when this returns."""
        with TURNS.alone(), _searching():
            first = compute(recording.pixels, recording.given)
            recording.features = static = torch.zeros_like(first)
            recording.nbytes += static.nbytes

            def work() -> None:
                static.copy_(compute(recording.pixels, recording.given))

            def unrecorded() -> None:
                with self.computing():
                    work()

            try:
                if self.capture is None:  # another recording has broken meanwhile
                    raise RuntimeError("nothing is recorded any more")
                replay, nbytes = self.capture(work, stage.stream)
                replay()
                faults = probe_faults(first.cpu(), static, cast(Literal["fp32", "bf16"], dtype))
            except RuntimeError as error:
                faults, replay, nbytes = [str(error)], unrecorded, 0
                if isinstance(error, RecordingBroken):
                    log.error("nothing is recorded on %s any more: a recording broke", self.device)
                    self.capture = None
            if faults:
                log.warning("batches of %d run without a recording on %s: %s", key[1], self.device, "; ".join(faults))
                replay = unrecorded
                work()
            else:
                recording.nbytes += nbytes
            recording.replay = replay
            stage.recordings[key] = recording
            self._make_room(recording)

    def _make_room(self, newest: Recording) -> None:
        """Forget what was used longest ago, until the rest fits; never what is being computed."""
        total = self.nbytes
        for stage, key, recording in sorted(self._all(), key=lambda found: found[2].used_at):
            if total <= self.budget:
                return
            if recording is newest or not stage.lock.acquire(blocking=False):
                continue
            try:
                if stage.recordings.pop(key, None) is not None:
                    total -= recording.nbytes
            finally:
                stage.lock.release()

    def _all(self) -> list[tuple[Stage, tuple[str, int], Recording]]:
        with self._lock:
            stages = list(self._stages.values())
        return [(stage, key, recording) for stage in stages for key, recording in list(stage.recordings.items())]
