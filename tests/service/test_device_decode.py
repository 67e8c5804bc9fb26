"""Decoding together on a device: the reference path's geometry, nearly its pixels, and its answer where it gives up.

The device is the CPU here, with torchvision's libjpeg in nvJPEG's place; the rest is the code that a GPU runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from masks_store import InvalidInput, Preprocess, Store
from service.api.payloads import Encoded
from service.device_decode import MOST_PICTURES, DecodeJpegs, DeviceDecoder, torchvision_jpegs
from service.engine import QueueFull
from service.images import Bad, Decoder, Picture, Pixels, decode, examine
from service.plain_jpeg import is_plain_jpeg

from .jpegs import SIZES, smooth
from .web import picture, running

# what torchvision says of its decoder since 0.29
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

PREPROCESS = Preprocess(resize=40, size=32)
LIMIT = 1_000_000
CPU = torch.device("cpu")

NEAR = 2
"""Levels: one by resizing, where Pillow rounds after each of its two passes, and one by another build of libjpeg."""


def turned(orientation: int, *, big_endian: bool = False) -> bytes:
    """A picture that EXIF data turns."""
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F] = "maker of cameras"
    exif[0x0112] = orientation
    return smooth((60, 50), exif=exif)


def twice(data: bytes) -> bytes:
    """The same with its EXIF data twice."""
    at = data.index(b"\xff\xe1")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[:end] + data[at:end] + data[end:]


def known(data: bytes) -> Picture:
    found = examine(Encoded(data), LIMIT)
    assert isinstance(found, Picture)
    return found


def reference(data: bytes, preprocess: Preprocess = PREPROCESS) -> Pixels | Bad:
    return decode(known(data), preprocess, LIMIT)


class Counting:
    """torchvision's decoder, which notes how many pictures each call brings, and waits where it is told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def __call__(self, encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        self.calls.append(len(encoded))
        self.began.set()
        assert self.go.wait(30)
        return torchvision_jpegs(encoded, device)


def decoder(decode_jpegs: DecodeJpegs, preprocess: Preprocess = PREPROCESS, **options: Any) -> Decoder:
    """A decoder of one thread beside a device."""
    limit_s = options.pop("limit_s", 60.0)
    device = DeviceDecoder(preprocess, CPU, decode_jpegs, **options)
    return Decoder(preprocess, LIMIT, 1, limit_s=limit_s, device=device)


def together(
    sent: Sequence[bytes], decode_jpegs: DecodeJpegs = torchvision_jpegs, preprocess: Preprocess = PREPROCESS
) -> list[Pixels | Bad]:
    """One request's pictures through a decoder with a device."""

    async def run() -> list[Pixels | Bad]:
        made = decoder(decode_jpegs, preprocess)
        try:
            return await made.decode([known(data) for data in sent])
        finally:
            made.close()

    return asyncio.run(run())


def same(one: Pixels | Bad, other: Pixels | Bad) -> bool:
    if isinstance(one, Bad) or isinstance(other, Bad):
        return one == other
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_size_has_the_reference_s_geometry_and_nearly_its_pixels(interpolation: Any) -> None:
    for preprocess in (Preprocess(resize=r, size=32, interpolation=interpolation) for r in (32, 37, 40)):
        sent = [smooth(size, quality=95) for size in SIZES] + [
            smooth((70, 50), mode="L"),
            smooth((70, 51), progressive=True),
        ]
        for size, data, found in zip(
            [*SIZES, "grey", "progressive"], sent, together(sent, preprocess=preprocess), strict=True
        ):
            expected = reference(data, preprocess)
            assert isinstance(found, np.ndarray)
            assert isinstance(expected, np.ndarray)
            assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
            assert np.abs(found.astype(int) - expected).max() <= NEAR, size


def test_noise_is_cropped_at_the_very_same_place() -> None:
    sent = [picture("JPEG", size, quality=95) for size in [(45, 32), (32, 45), (47, 32), (32, 47), (32, 32), (999, 32)]]
    exact = Preprocess(resize=32, size=32)  # nothing is resized
    for data, found in zip(sent, together(sent, preprocess=exact), strict=True):
        expected = reference(data, exact)
        assert isinstance(found, np.ndarray)
        assert isinstance(expected, np.ndarray)
        assert np.abs(found.astype(int) - expected).max() <= 1


WITH_XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
WHOLE = smooth((60, 50))

NOT_PLAIN = {
    "PNG": smooth((60, 50), "PNG"),
    "WebP": smooth((60, 50), "WEBP"),
    "CMYK": smooth((60, 50), mode="CMYK"),
    "RGB without YCbCr": smooth((60, 50), keep_rgb=True),
    "turned by XMP": smooth((60, 50), xmp=WITH_XMP),
    **{f"turned {n}": turned(n, big_endian=n % 2 == 0) for n in range(2, 9)},
    "EXIF data twice": twice(turned(1)),
    "EXIF data that is none": smooth((60, 50), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "cut off": WHOLE[: len(WHOLE) // 2],
    "cut off before the end": WHOLE[:-2],
    "something behind": WHOLE + b"\0",
    "twelve bits": WHOLE.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "arithmetic": WHOLE.replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11"),
    "two frames": WHOLE.replace(b"\xff\xc0\x00\x11", WHOLE[WHOLE.index(b"\xff\xc0") :][:19] + b"\xff\xc0\x00\x11"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_whatever_is_not_plain_never_reaches_the_device_and_is_answered_as_without_it(what: str) -> None:
    device = Counting()
    assert same(together([NOT_PLAIN[what]], device)[0], reference(NOT_PLAIN[what]))
    assert device.calls == []


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        smooth((60, 50), mode="L"),
        smooth((60, 50), progressive=True),
        *(smooth((60, 50), subsampling=kind) for kind in ("4:4:4", "4:2:2", "4:2:0")),
        turned(1),
        turned(1, big_endian=True),
        smooth((60, 50), icc_profile=b"x" * 70_000, comment=b"\xff\xd8" * 99, xmp=b"<x:xmpmeta/>"),
    ],
)
def test_what_cameras_and_programs_write_is_plain(data: bytes) -> None:
    assert is_plain_jpeg(data)


@given(data=st.binary(max_size=300), at=st.integers(0, 700))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_header_s_reader_fail(data: bytes, at: int) -> None:
    assert is_plain_jpeg(b"\xff\xd8\xff" + data + b"\xff\xd9") in (True, False)
    camera = turned(1)
    assert is_plain_jpeg(camera[:at] + data + camera[at + len(data) :]) in (True, False)


def broken() -> bytes:
    """A JPEG whose header is plain and whose quantisation tables are not there."""
    cut = WHOLE.replace(b"\xff\xdb", b"\xff\xe5")
    assert is_plain_jpeg(cut)
    return cut


def test_a_broken_picture_has_the_reference_s_words_and_costs_no_other_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent = [WHOLE, broken(), smooth((50, 60)), NOT_PLAIN["PNG"]]
    device = Counting()
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        found = together(sent, device)
    assert device.calls == [3]
    assert isinstance(found[1], Bad)
    assert [same(one, reference(data)) for one, data in zip(found, sent, strict=True)] == [True] * 4
    assert ["3 JPEG(s) were left to the CPU" in message for message in caplog.messages] == [True]


@pytest.mark.anyio
async def test_pictures_that_wait_at_the_same_moment_are_decoded_in_one_call() -> None:
    device = Counting()
    device.go.clear()
    made = decoder(device)
    first = asyncio.create_task(made.decode([known(WHOLE)]))
    await asyncio.to_thread(device.began.wait, 30)
    more = [asyncio.create_task(made.decode([known(WHOLE)] * count)) for count in (1, 3, MOST_PICTURES)]
    while made.pending < (4 + MOST_PICTURES) * 60 * 50:
        await asyncio.sleep(0)
    device.go.set()
    found = [await task for task in (first, *more)]
    assert device.calls == [1, MOST_PICTURES, 4]
    assert [len(one) for one in found] == [1, 1, 3, MOST_PICTURES]
    assert made.pending == 0
    made.close()


@pytest.mark.anyio
async def test_a_call_decodes_no_more_pixels_than_its_bound() -> None:
    device = Counting()
    made = decoder(device, most_pixels=7000)  # two of 3000; a picture of 10000 is not taken
    assert len(await made.decode([known(WHOLE)] * 5 + [known(smooth((100, 100)))])) == 6
    assert sum(device.calls) == 5
    assert max(device.calls) <= 2
    made.close()


def test_a_picture_that_would_shrink_more_than_the_device_can_is_left_to_the_cpu() -> None:
    device = Counting()
    sent = [smooth((240, 240)), smooth((280, 280))]  # 30 and 35 times as long as wanted
    found = together(sent, device, Preprocess(resize=8, size=8))
    assert device.calls == [1]
    assert len(found) == 2
    assert not any(isinstance(one, Bad) for one in found)


@pytest.mark.anyio
async def test_pictures_that_are_given_up_are_not_decoded() -> None:
    device = Counting()
    device.go.clear()
    made = decoder(device)
    first = asyncio.create_task(made.decode([known(WHOLE)]))
    await asyncio.to_thread(device.began.wait, 30)
    one = made.pending
    given_up = asyncio.create_task(made.decode([known(WHOLE)] * 9))
    while made.pending < 10 * one:
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert made.pending == one
    last = asyncio.create_task(made.decode([known(WHOLE)] * 2))
    await asyncio.sleep(0)
    device.go.set()
    assert [len(await first), len(await last)] == [1, 2]
    assert device.calls == [1, 2]
    made.close()


@pytest.mark.anyio
async def test_a_long_queue_for_the_device_refuses_its_pictures_and_no_others() -> None:
    device = Counting()
    device.go.clear()
    made = decoder(device, limit_s=1e-6)
    accepted = asyncio.create_task(made.decode([known(WHOLE)] * 5))
    while not made.pending:
        await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refused:
        await made.decode([known(WHOLE)])
    assert refused.value.retry_after_s > 0
    assert len(await made.decode([known(NOT_PLAIN["PNG"])])) == 1
    device.go.set()
    assert len(await accepted) == 5
    made.close()


@pytest.mark.anyio
async def test_what_the_device_gives_up_is_refused_where_the_threads_have_too_much_to_do() -> None:
    def broken(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("the device is lost")

    made, go = decoder(broken, limit_s=1e-6), threading.Event()
    # its one thread:
    made._pool.submit(go.wait, 30)  # pyright: ignore[reportPrivateUsage]
    accepted = asyncio.create_task(made.decode([known(NOT_PLAIN["PNG"])]))
    while not made.pending:
        await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await made.decode([known(WHOLE)])
    go.set()
    assert len(await accepted) == 1
    made.close()


def test_the_trial_of_the_start_passes_what_decodes_and_names_the_mend_where_it_does_not() -> None:
    def exchanged(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        return [image.flip(0) for image in torchvision_jpegs(encoded, device)]

    def without(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from …")

    for good in (Preprocess(resize=16, size=16), Preprocess(resize=256, size=224, interpolation="bicubic")):
        DeviceDecoder(good, CPU).try_out()
    with pytest.raises(InvalidInput, match=r"another picture .* leave --gpu-decode out"):
        DeviceDecoder(PREPROCESS, CPU, exchanged).try_out()
    with pytest.raises(InvalidInput, match=r"nvJPEG support\); leave --gpu-decode out"):
        DeviceDecoder(PREPROCESS, CPU, without).try_out()


@pytest.mark.anyio
async def test_a_server_on_a_cpu_does_not_start_with_the_flag(store: Store) -> None:
    with pytest.raises(InvalidInput, match=r"--gpu-decode decodes on a GPU, .* is cpu: leave it out, or .* --device"):
        async with running(store, device="cpu", gpu_decode=True):
            pass
