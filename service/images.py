"""From the bytes of pictures to the pixels that the network takes, in threads, never on the event loop.

What a picture is, its first bytes say: a type outside the allow-list is not given to a decoder at all, whatever its
Content-Type claims, and its size is read from its header before any pixel is decoded.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masks_store import InvalidInput, Preprocess, open_image, pixels

from .api.payloads import Encoded
from .engine import DeadlinePassed, QueueFull
from .errors import Problem
from .image_headers import header_size
from .memory import cores

Pixels = npt.NDArray[np.uint8]

PACE_S = 2e-8
"""Seconds that a thread takes for a pixel: a first guess; measured from then on."""
PIXELS_PER_PICTURE = 16_384
"""What any picture costs however small it is, in pixels."""
SMOOTHING = 0.2


@dataclass(frozen=True)
class Bad:
    """A picture that gives no pixels: the status it would have alone, and why."""

    status: int
    reason: str


@dataclass(frozen=True)
class Picture:
    """A picture of a type and size that are decoded: its bytes, Pillow's name of its type, its pixels by its header."""

    data: bytes
    kind: str
    pixels: int


def sniff(data: bytes) -> str | None:
    """Pillow's name of a picture's type by its first bytes; None for one outside the allow-list."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def examine(image: Encoded, max_pixels: int) -> Picture | Bad:
    """What a picture is, or why it is not decoded."""
    if image.fault is not None:
        return Bad(422, image.fault)
    if not image.data:
        return Bad(422, "the image is empty")
    kind = sniff(image.data)
    if kind is None:
        return Bad(415, "the bytes are not a JPEG, PNG or WebP image")
    size = header_size(image.data, kind)
    if size is None:  # the decoder will say what is wrong with it
        return Picture(image.data, kind, len(image.data))
    if size[0] * size[1] > max_pixels:
        return Bad(413, f"{size[0]}x{size[1]} pixels are more than the limit of {max_pixels}")
    return Picture(image.data, kind, size[0] * size[1])


def decode(picture: Picture, preprocess: Preprocess, max_pixels: int) -> Pixels | Bad:
    """One picture as uint8 [size, size, 3], or why not."""
    try:
        return pixels(open_image(picture.data, max_pixels=max_pixels, formats=(picture.kind,)), preprocess)
    except InvalidInput as error:
        return Bad(422, str(error))


class Decoder:
    """A pool of threads that decodes, and takes no more than it can decode in time.

    Args:
        preprocess: the store's; all its tasks share one.
        max_pixels: most pixels of one picture.
        threads: by default one per core.
        limit_s: longest estimated wait for a thread with which pictures are accepted.
    """

    def __init__(
        self, preprocess: Preprocess, max_pixels: int, threads: int | None = None, *, limit_s: float = math.inf
    ) -> None:
        self.threads = threads or cores()
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        self._limit_s = limit_s
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._pending = 0
        self._pace_s = PACE_S

    @property
    def pending(self) -> int:
        """Pixels of the pictures that wait for a thread or have one, and `PIXELS_PER_PICTURE` for each."""
        return self._pending

    async def decode(self, images: Sequence[Picture | Bad], deadline: float | None = None) -> list[Pixels | Bad]:
        """Every picture's pixels, uint8 [size, size, 3], or why there are none; in the order given.

        Where it is cancelled or late, the pictures that no thread has taken yet are dropped.

        Args:
            images: as `examine` found them.
            deadline: by time.monotonic().

        Raises:
            QueueFull: the estimated wait is over the limit.
            DeadlinePassed: not all were decoded in time.
        """
        wait = self._pending * self._pace_s / self.threads
        if wait > self._limit_s:
            raise QueueFull(wait - self._limit_s)
        jobs = {place: self._submit(image) for place, image in enumerate(images) if isinstance(image, Picture)}
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                decoded = await asyncio.gather(*map(asyncio.wrap_future, jobs.values()))
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the images were decoded") from None
        finally:
            for job in jobs.values():
                job.cancel()
        found = dict(zip(jobs, decoded, strict=True))
        return [image if isinstance(image, Bad) else found[place] for place, image in enumerate(images)]

    def close(self) -> None:
        """Let the threads go; pictures in their queue are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, picture: Picture) -> Future[Pixels | Bad]:
        cost = picture.pixels + PIXELS_PER_PICTURE
        job = self._pool.submit(self._decode, picture, cost)
        self._count(cost)
        job.add_done_callback(lambda _: self._count(-cost))
        return job

    def _decode(self, picture: Picture, cost: int) -> Pixels | Bad:
        started = time.monotonic()
        decoded = decode(picture, self._preprocess, self._max_pixels)
        with self._lock:
            self._pace_s += SMOOTHING * ((time.monotonic() - started) / cost - self._pace_s)
        return decoded

    def _count(self, cost: int) -> None:
        with self._lock:
            self._pending += cost


def alone(bad: Bad) -> Problem:
    """The answer to a request whose one picture is bad."""
    reason = "too_large" if bad.status == 413 else None
    return Problem(bad.status, f"the image cannot be used: {bad.reason}", [bad.reason], reason=reason)
