"""A picture's size from its first bytes, without a decoder: some bytes are looked at, nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator

SIZED = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers that carry the size (SOF0 to SOF15 without DHT, JPG and DAC)."""

BARE = frozenset(range(0xD0, 0xDA)) | {0x01}
"""JPEG markers without a length (RST, SOI, EOI, TEM)."""

SCAN = 0xDA

MOST_STEPS = 1_000
"""Segments and fill bytes of a JPEG that are looked at, on the event loop; real ones have some dozens."""


def header_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height as the header states them; None where there is no such header.

    Args:
        data: the encoded picture.
        kind: JPEG, PNG or WEBP.
    """
    match kind:
        case "PNG":
            return (_big(data, 16, 4), _big(data, 20, 4)) if data[12:16] == b"IHDR" and len(data) >= 24 else None
        case "WEBP":
            return _webp(data)
        case _:
            return _jpeg(data)


def _webp(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + _little(data, 24, 3), 1 + _little(data, 27, 3)
        case b"VP8L":
            bits = _little(data, 21, 4)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
        case _:
            return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG up to the head of its first scan, or up to bytes that are none.

    Yields:
        Its marker, and where what it holds begins and ends, by its own length: the end may lie beyond the bytes.
    """
    at = 2
    for _ in range(MOST_STEPS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in BARE:
            at += 2
        else:
            end = at + 2 + max(2, _big(data, at + 2, 2))
            yield marker, at + 4, end
            if marker == SCAN:
                return
            at = end


def _jpeg(data: bytes) -> tuple[int, int] | None:
    for marker, start, _ in jpeg_segments(data):
        if marker in SIZED:
            return (_big(data, start + 3, 2), _big(data, start + 1, 2)) if start + 5 <= len(data) else None
    return None


def _big(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
