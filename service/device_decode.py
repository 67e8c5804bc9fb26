"""Plain JPEGs decoded, resized and cropped on a GPU, those that wait at the same moment in one call of nvJPEG.

The geometry is that of `masks_store.pixels`; the numbers are not quite: nvJPEG rounds otherwise than libjpeg, and the
resize rounds once where Pillow rounds after each of its two passes. A batch that the device does not decode is given
up as a whole, picture by picture to whoever asked.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from masks_store import InvalidInput, Preprocess, centre_box, open_image, pixels, resize_geometry

from .backlog import Backlog, cost_of
from .engine import find_device
from .plain_jpeg import is_plain_jpeg

log = logging.getLogger("taskpack.service")

Pixels = npt.NDArray[np.uint8]

DecodeJpegs = Callable[[list[Tensor], torch.device], list[Tensor]]
"""Encoded pictures, uint8 [bytes] each, on the host, to uint8 [3, H, W] each, on the device."""

MOST_PICTURES = 32
MOST_PIXELS = 32_000_000
"""Of one call, and so of one picture: 96 MB decoded, and 384 MB more while one as large as this is resized."""

MOST_SHRINK = 32
"""How many times as long as wanted the shorter side may be: torch's resize keeps a row of weights for each output pixel
in a GPU's shared memory, 48 KB, which a bicubic one has filled at about 47."""

MEAN_FAULT = 8.0
"""Mean difference in levels that another decoder may make at the start; exchanged or missing colours make far more."""


def torchvision_jpegs(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEGs by torchvision: nvJPEG on a GPU, libjpeg on a CPU.

    Raises:
        RuntimeError: one of the pictures is broken, or the device cannot decode.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    assert isinstance(decoded, list)
    return decoded


def decode_together(
    encoded: Sequence[bytes], preprocess: Preprocess, device: torch.device, decode_jpegs: DecodeJpegs
) -> Pixels:
    """Plain JPEGs as the network takes them.

    Args:
        encoded: what `is_plain_jpeg` says yes to.
        preprocess: the store's.
        device: that decodes, resizes and crops.
        decode_jpegs: called once.

    Returns:
        uint8 [N, size, size, 3], on the host.

    Raises:
        RuntimeError: as `decode_jpegs`; no memory on the device.
    """
    found = decode_jpegs([torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded], device)
    squares = torch.stack([_square(image, preprocess) for image in found])  # [N, 3, size, size]
    return squares.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _square(image: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, size, size], on its device."""
    _, height, width = image.shape
    (left, top, right, bottom), (width, height) = resize_geometry(width, height, preprocess.resize)
    image = image[:, top:bottom, left:right]
    if image.shape[1:] != (height, width):
        exact = functional.interpolate(
            image[None].float(), (height, width), mode=preprocess.interpolation, antialias=True
        )
        image = exact[0].round_().clamp_(0, 255).to(torch.uint8)
    left, top, right, bottom = centre_box(width, height, preprocess.size)
    return image[:, top:bottom, left:right]


@dataclass(frozen=True, slots=True)
class _Waiting:
    data: bytes
    pixels: int
    job: Future[Pixels | None] = field(default_factory=lambda: Future[Pixels | None]())


class DeviceDecoder:
    """One thread that decodes on a device what waits for it.

    Args:
        preprocess: the store's.
        device: any of torch's; a GPU outside of tests.
        decode_jpegs: decodes there.
        most_pixels: of one call, and so of one picture.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        device: torch.device,
        decode_jpegs: DecodeJpegs = torchvision_jpegs,
        *,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self._preprocess = preprocess
        self._most_pixels = most_pixels
        self._device = device
        self._decode_jpegs = decode_jpegs
        # nvJPEG writes from a stream of its own into memory that torch hands out for the current one: in a stream that
        # nobody else uses, and that is empty between two calls, no kernel still reads that memory. Torch hands out few
        # streams, in turn: one of another priority is no stage's.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device decode")
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._told = False
        self.backlog = Backlog(1)

    def takes(self, data: bytes, size: int) -> bool:
        """Whether a picture is one for the device.

        Args:
            data: the encoded picture, of whatever type.
            size: its pixels by its header.
        """
        return size <= min(self._most_pixels, (MOST_SHRINK * self._preprocess.resize) ** 2) and is_plain_jpeg(data)

    def submit(self, pictures: Sequence[tuple[bytes, int]]) -> list[Future[Pixels | None]]:
        """Queue pictures that the device takes; one that is cancelled before it is decoded costs nothing.

        Args:
            pictures: encoded, with their pixels by the header.

        Returns:
            Of each its uint8 [size, size, 3], or None where its batch was given up.
        """
        waiting = [_Waiting(data, size) for data, size in pictures]
        for one in waiting:
            self.backlog.follow(one.job, cost_of(one.pixels))
        with self._lock:
            self._queue.extend(waiting)
        for _ in waiting:  # each call takes what waits by then; the last ones mostly find nothing
            self._thread.submit(self._next)
        return [one.job for one in waiting]

    def try_out(self) -> None:
        """Decode a colour and a grey picture, and compare.

        Raises:
            InvalidInput: the device does not decode, or gives other pictures.
        """
        tried = [_gradient("RGB"), _gradient("L")]
        expected = np.stack([pixels(open_image(data), self._preprocess) for data in tried])
        mend = "leave --gpu-decode out, or install a torchvision built with nvJPEG for this machine's CUDA"
        try:
            found = self._decode(tried)
        except Exception as error:  # whatever a library built otherwise raises
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InvalidInput(f"--gpu-decode: {self._device} decodes no JPEG ({reason}); {mend}") from error
        fault = float(np.abs(found.astype(np.int16) - expected).mean((1, 2, 3)).max())
        if fault > MEAN_FAULT:
            raise InvalidInput(
                f"--gpu-decode: {self._device} decodes a JPEG to another picture ({fault:.0f} levels off in the mean, "
                f"expected at most {MEAN_FAULT:.0f}); {mend}"
            )

    def close(self) -> None:
        """Let the thread go; pictures in its queue are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = list(self._queue)
            self._queue.clear()
        for one in left:
            one.job.cancel()

    def _next(self) -> None:
        """Decode a batch of what waits. A job may be cancelled until its answer is there."""
        batch = self._take()
        if not batch:
            return
        started = time.monotonic()
        found: Sequence[Pixels | None]
        try:
            found = list(self._decode([one.data for one in batch]))
            self.backlog.took(time.monotonic() - started, sum(cost_of(one.pixels) for one in batch))
        except Exception as error:  # a broken picture, no memory, a device that is gone: the reference path will say
            found = [None] * len(batch)
            self._tell(error, len(batch))
        for one, decoded in zip(batch, found, strict=True):
            if one.job.set_running_or_notify_cancel():
                one.job.set_result(decoded)

    def _take(self) -> list[_Waiting]:
        """The next pictures that are still wanted, as many as one call decodes."""
        batch: list[_Waiting] = []
        left = self._most_pixels
        with self._lock:
            while self._queue and len(batch) < MOST_PICTURES and self._queue[0].pixels <= left:
                one = self._queue.popleft()
                if not one.job.cancelled():
                    batch.append(one)
                    left -= one.pixels
        return batch

    def _decode(self, encoded: Sequence[bytes]) -> Pixels:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                return decode_together(encoded, self._preprocess, self._device, self._decode_jpegs)
            finally:
                if self._stream is not None:
                    self._stream.synchronize()

    def _tell(self, error: Exception, pictures: int) -> None:
        reason = str(error).partition("\n")[0] or type(error).__name__
        level = logging.DEBUG if self._told else logging.WARNING
        log.log(level, "%d JPEG(s) were left to the CPU by %s: %s (told once)", pictures, self._device, reason)
        self._told = True


def device_decoder(preprocess: Preprocess, device: str) -> DeviceDecoder:
    """A decoder on a server's GPU that has been tried out.

    Args:
        preprocess: the store's.
        device: the setting.

    Raises:
        InvalidInput: it is no GPU, or one that does not decode.
    """
    found = find_device(device)
    if found.type != "cuda":
        raise InvalidInput(
            f"--gpu-decode decodes on a GPU, and this server's device is {found}: leave it out, or name a GPU with "
            "--device cuda"
        )
    made = DeviceDecoder(preprocess, found)
    try:
        made.try_out()
    except InvalidInput:
        made.close()
        raise
    return made


def _gradient(mode: str) -> bytes:
    """A JPEG whose three colours differ and change slowly."""
    down, across = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 64), indexing="ij")
    out = io.BytesIO()
    colours = np.stack([across, down, np.full_like(down, 200.0)], axis=-1).astype(np.uint8)
    Image.fromarray(colours).convert(mode).save(out, "JPEG", quality=95)
    return out.getvalue()
