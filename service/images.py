"""From the bytes of pictures to the pixels that the network takes, in threads, never on the event loop.

What a picture is, its first bytes say: a type outside the allow-list is not given to a decoder at all, whatever its
Content-Type claims, and its size is read from its header before any pixel is decoded.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from masks_store import InvalidInput, Preprocess, open_image, pixels

from .api.payloads import Encoded
from .backlog import Backlog, cost_of
from .device_decode import DeviceDecoder, Pixels
from .engine import DeadlinePassed, QueueFull
from .errors import Problem
from .image_headers import header_size
from .memory import cores

T = TypeVar("T")


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
        limit_s: longest estimated wait with which pictures are accepted.
        device: decodes what it takes, instead of a thread of the pool; what it gives up goes to the pool.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        max_pixels: int,
        threads: int | None = None,
        *,
        limit_s: float = math.inf,
        device: DeviceDecoder | None = None,
    ) -> None:
        self.threads = threads or cores()
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        self._limit_s = limit_s
        self._device = device
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._backlog = Backlog(self.threads)

    @property
    def pending(self) -> int:
        """Pixels of the pictures that wait or are being decoded, and `PIXELS_PER_PICTURE` for each."""
        return self._backlog.pending + (self._device.backlog.pending if self._device else 0)

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
        bad = {place: image for place, image in enumerate(images) if isinstance(image, Bad)}
        given = {place: image for place, image in enumerate(images) if isinstance(image, Picture)}
        plain = self._for_the_device(given)
        self._refuse_beyond_the_limit(bool(plain), len(plain) < len(images))
        on_device = self._submit_to_device(plain)
        in_pool = self._submit(given, given.keys() - plain.keys())
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                tried = await _all(on_device)
                given_up = [place for place, one in tried.items() if one is None]
                self._refuse_beyond_the_limit(False, bool(given_up))
                in_pool |= self._submit(given, given_up)
                found = await _all(in_pool) | {place: one for place, one in tried.items() if one is not None} | bad
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the images were decoded") from None
        finally:
            for job in (*on_device.values(), *in_pool.values()):
                job.cancel()
        return [found[place] for place in range(len(images))]

    def close(self) -> None:
        """Let the threads go; pictures in their queue are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._device is not None:
            self._device.close()

    def _for_the_device(self, given: Mapping[int, Picture]) -> dict[int, Picture]:
        device = self._device
        if device is None:
            return {}
        return {place: one for place, one in given.items() if device.takes(one.data, one.pixels)}

    def _refuse_beyond_the_limit(self, device: bool, pool: bool) -> None:
        """Raise QueueFull where one of the queues that are named is too long."""
        waits = [self._backlog.wait_s] if pool else []
        if device and self._device is not None:
            waits.append(self._device.backlog.wait_s)
        wait = max(waits, default=0.0)
        if wait > self._limit_s:
            raise QueueFull(wait - self._limit_s)

    def _submit_to_device(self, plain: Mapping[int, Picture]) -> dict[int, Future[Pixels | None]]:
        if self._device is None:
            return {}
        jobs = self._device.submit([(picture.data, picture.pixels) for picture in plain.values()])
        return dict(zip(plain, jobs, strict=True))

    def _submit(self, given: Mapping[int, Picture], places: Iterable[int]) -> dict[int, Future[Pixels | Bad]]:
        jobs = {place: self._pool.submit(self._decode, given[place]) for place in places}
        for place, job in jobs.items():
            self._backlog.follow(job, cost_of(given[place].pixels))
        return jobs

    def _decode(self, picture: Picture) -> Pixels | Bad:
        started = time.monotonic()
        decoded = decode(picture, self._preprocess, self._max_pixels)
        self._backlog.took(time.monotonic() - started, cost_of(picture.pixels))
        return decoded


async def _all(jobs: Mapping[int, Future[T]]) -> dict[int, T]:
    return dict(zip(jobs, await asyncio.gather(*map(asyncio.wrap_future, jobs.values())), strict=True))


def alone(bad: Bad) -> Problem:
    """The answer to a request whose one picture is bad."""
    reason = "too_large" if bad.status == 413 else None
    return Problem(bad.status, f"the image cannot be used: {bad.reason}", [bad.reason], reason=reason)
