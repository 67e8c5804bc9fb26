"""Pictures: what they are by their bytes, how large by their header, and that none is decoded before that is known."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masks_store import Preprocess, Store
from service import images
from service.api.payloads import Encoded
from service.backlog import PIXELS_PER_PICTURE
from service.engine import DeadlinePassed, QueueFull
from service.image_headers import header_size
from service.images import Bad, Decoder, Picture, Pixels, decode, examine, sniff

from .web import PNG, Web, picture, probed, problem, running

PREPROCESS = Preprocess(resize=16, size=16)
LIMIT = 1_000_000


def read(data: bytes) -> Pixels | Bad:
    """One picture's pixels, or why there are none."""
    found = examine(Encoded(data), LIMIT)
    return found if isinstance(found, Bad) else decode(found, PREPROCESS, LIMIT)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    lossless=st.booleans(),
    extra=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_header_tells_the_size_that_the_decoder_finds(
    kind: str, width: int, height: int, lossless: bool, extra: bool
) -> None:
    options: dict[str, bool | bytes] = {}
    if kind == "WEBP":
        options["lossless"] = lossless
        options |= {"exif": b"Exif\0\0"} if extra else {}
    if kind == "JPEG":
        options["progressive"] = lossless
        options |= {"comment": b"\xff\xd8" * 99, "icc_profile": b"x" * 70_000} if extra else {}
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, kind, **options)
    data = out.getvalue()
    assert sniff(data) == kind
    assert header_size(data, kind) == (width, height) == Image.open(io.BytesIO(data)).size


@given(data=st.binary(max_size=200), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
@settings(max_examples=200, deadline=None)
def test_no_header_is_read_beyond_the_bytes(data: bytes, kind: str) -> None:
    magic = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8", "WEBP": b"RIFF\0\0\0\0WEBP"}[kind]
    size = header_size(magic + data, kind)
    assert size is None or all(isinstance(side, int) for side in size)


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xe5\0\2", b"\xff\xd0"])
def test_of_a_header_without_end_only_the_beginning_is_read(filler: bytes) -> None:
    frame = b"\xff\xc0\0\x11\x08\0\x05\0\x07\x03"
    assert header_size(b"\xff\xd8" + filler * 500 + frame, "JPEG") == (7, 5)
    assert header_size(b"\xff\xd8" + filler * 20_000 + frame, "JPEG") is None


@given(data=st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_pixels_or_a_reason(data: bytes) -> None:
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WEBP"):
        found = read(start + data)
        if isinstance(found, Bad):
            assert found.status in (413, 415, 422)
            assert found.reason
        else:
            assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_types_are_not_given_to_a_decoder(kind: str) -> None:
    found = read(picture(kind))
    assert isinstance(found, Bad)
    assert found.status == 415


def test_a_type_is_decoded_as_what_its_first_bytes_say_and_nothing_else() -> None:
    disguised = b"\x89PNG\r\n\x1a\n" + picture("GIF")
    found = read(disguised)
    assert isinstance(found, Bad)
    assert found.status == 422


@pytest.mark.parametrize("size", [(65_535, 65_535), (1001, 1000), (2_000_000_000, 2_000_000_000)])
def test_a_picture_over_the_pixel_limit_is_refused_from_its_header(size: tuple[int, int]) -> None:
    found = read(png_bomb(*size))
    assert found == Bad(413, f"{size[0]}x{size[1]} pixels are more than the limit of {LIMIT}")


def test_every_truncation_of_a_picture_gives_a_reason() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = picture(kind, (64, 48))
        for length in range(0, len(whole) - 20, 97):
            assert isinstance(read(whole[:length]), Bad)


class Heart:
    """Beats on the event loop, and keeps each picture's decoding going until it has beaten so many times meanwhile."""

    MEANWHILE = 50

    def __init__(self) -> None:
        self.beats = 0
        self.threads: list[threading.Thread] = []
        self._beaten = threading.Condition()
        self._decode = images.decode

    async def beat(self) -> None:
        while True:
            with self._beaten:
                self.beats += 1
                self._beaten.notify_all()
            await asyncio.sleep(0)

    def decode(self, one: Picture, *rest: Any) -> Pixels | Bad:
        self.threads.append(threading.current_thread())
        with self._beaten:
            enough = self.beats + self.MEANWHILE
            assert self._beaten.wait_for(lambda: self.beats >= enough, 20), "the loop waits for a picture"
        return self._decode(one, *rest)


@pytest.mark.anyio
async def test_the_event_loop_goes_on_while_each_picture_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on the loop's gaps that no slow machine breaks: none is as long as one picture's decoding."""
    heart, sent = Heart(), [picture(seed=seed) for seed in range(6)]
    expected = [np.asarray(read(data)).tobytes() for data in sent]
    monkeypatch.setattr(images, "decode", heart.decode)  # the real one, held up by the loop's beats
    decoder, beating = Decoder(PREPROCESS, LIMIT, threads=2), asyncio.create_task(heart.beat())
    try:
        found = await decoder.decode([examine(Encoded(data), LIMIT) for data in sent])
    finally:
        beating.cancel()
        decoder.close()
    assert [np.asarray(one).tobytes() for one in found] == expected
    assert len(heart.threads) == len(sent)
    assert 1 <= len(set(heart.threads)) <= 2
    assert heart.beats >= len(sent) / 2 * heart.MEANWHILE


@pytest.mark.anyio
async def test_while_a_picture_is_held_in_the_decoder_all_else_is_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun, decode = threading.Event(), threading.Event(), images.decode

    def gated(one: Picture, *rest: Any) -> Pixels | Bad:
        begun.set()
        assert gate.wait(30)
        return decode(one, *rest)

    monkeypatch.setattr(images, "decode", gated)
    async with running(store, decode_threads=1) as web:
        await probed(web)
        asked = asyncio.create_task(web.predict())
        try:
            assert await asyncio.to_thread(begun.wait, 30)
            for path in ("/livez", "/readyz", "/tasks", "/metrics", "/info"):
                assert (await web.client.get(path)).status_code == 200, path
            wrong = await web.client.post("/predict?task=birds", content=picture("GIF"), headers=PNG)
            problem(wrong, 415)
            assert not asked.done()
        finally:
            gate.set()
        assert (await asked)["task"] == "birds"


SLOW = picture(size=(900, 900))
"""A picture that takes a thread long enough for the event loop to do something meanwhile."""


def slow(count: int) -> list[Picture | Bad]:
    return [examine(Encoded(SLOW), LIMIT)] * count


ONE = 900 * 900 + PIXELS_PER_PICTURE


@pytest.mark.anyio
async def test_pictures_that_are_late_or_given_up_are_dropped_before_a_thread_takes_them() -> None:
    decoder = Decoder(PREPROCESS, LIMIT, threads=1)
    with pytest.raises(DeadlinePassed):
        await decoder.decode(slow(20), time.monotonic() + 0.001)
    assert decoder.pending <= ONE  # what the thread has
    given_up = asyncio.create_task(decoder.decode(slow(20)))
    while decoder.pending < 20 * ONE:
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert decoder.pending <= 2 * ONE
    while decoder.pending:
        await asyncio.sleep(0.01)
    assert len(await decoder.decode(slow(1), time.monotonic() + 60)) == 1
    assert decoder.pending == 0
    decoder.close()


@pytest.mark.anyio
async def test_pictures_that_would_wait_too_long_are_refused_with_a_time_to_come_back() -> None:
    decoder = Decoder(PREPROCESS, LIMIT, threads=1, limit_s=1e-6)
    accepted = asyncio.create_task(decoder.decode(slow(5)))  # nothing waits yet: however many there are
    while not decoder.pending:
        await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refused:
        await decoder.decode(slow(1))
    assert refused.value.retry_after_s > 0
    assert len(await accepted) == 5
    assert len(await decoder.decode(slow(1))) == 1
    decoder.close()


@pytest.mark.anyio
async def test_bad_pictures_keep_their_places_among_good_ones() -> None:
    decoder = Decoder(PREPROCESS, LIMIT, threads=2)
    bad = examine(Encoded(b"GIF89a"), LIMIT)
    found = await decoder.decode([bad, *slow(1), bad, *slow(1)])
    assert [isinstance(one, Bad) for one in found] == [True, False, True, False]
    assert await decoder.decode([bad]) == [bad]
    decoder.close()


@pytest.mark.anyio
async def test_a_single_picture_over_the_limit_is_413_and_among_several_it_is_named(web: Web) -> None:
    bomb = png_bomb(50_000, 50_000)
    problem(await web.client.post("/predict?task=birds", content=bomb, headers={"Content-Type": "image/png"}), 413)
    response = await web.client.post("/predict?task=birds", files=[("image", bomb), ("image", picture())])
    assert [one["status"] for one in response.json()["predictions"]] == ["error", "ok"]
    assert 'taskpack_rejected_total{reason="too_large"} 1.0' in (await web.client.get("/metrics")).text


@pytest.mark.anyio
async def test_the_pixel_limit_is_a_setting(store: Store) -> None:
    async with running(store, max_pixels=359) as small:
        sent = picture(size=(20, 18))
        problem(
            await small.client.post("/predict?task=birds", content=sent, headers={"Content-Type": "image/png"}), 413
        )
    async with running(store, max_pixels=360) as large:
        assert await large.predict()
