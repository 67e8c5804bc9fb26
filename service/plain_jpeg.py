"""Which JPEGs any decoder reads alike, told from the header; strict: what is not understood is not plain.

Colours that only libjpeg guesses, turns that only Pillow applies and what ends early stay with the reference path.
"""

from __future__ import annotations

from .image_headers import SCAN, SIZED, jpeg_segments

BASELINE, PROGRESSIVE = 0xC0, 0xC2
APP0, APP1, APP14, APP15 = 0xE0, 0xE1, 0xEE, 0xEF
TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE)) | frozenset(range(APP0, APP15 + 1))
"""Huffman and quantisation tables, restart interval, comments, applications' own."""

SAMPLINGS = frozenset((0x11, 0x21, 0x12, 0x22))
"""Luma samples for one of chroma, across and down: 4:4:4, 4:2:2, 4:4:0, 4:2:0."""

MOST_SEGMENTS = 200
MOST_ENTRIES = 64
"""Of an EXIF directory, of which there may be one: this runs on the event loop."""

EXIF = b"Exif\0\0"
ORIENTATION = 0x0112
SHORT = 3


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a picture is an upright, whole JPEG of grey or YCbCr in 8 bits, baseline or progressive.

    Args:
        data: the encoded picture, of whatever type.
    """
    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return False
    frames = exifs = 0
    for count, (marker, start, end) in enumerate(jpeg_segments(data)):
        if count >= MOST_SEGMENTS or end > len(data):
            return False
        if marker == SCAN:
            return frames == 1
        body = data[start:end]
        if marker in SIZED:
            frames += 1
            understood = marker in (BASELINE, PROGRESSIVE) and _plain_frame(body)
        elif marker == APP1:
            exifs += body.startswith(EXIF)
            understood = exifs <= 1 and _upright(body)
        elif marker == APP14:
            understood = not body.startswith(b"Adobe") or body[11:12] == b"\x01"  # YCbCr
        else:
            understood = marker in TABLES
        if not understood:
            return False
    return False


def _plain_frame(frame: bytes) -> bool:
    """Precision, height, width, count of components; of each its id, sampling and table."""
    if len(frame) < 9 or frame[0] != 8 or frame[1:3] == b"\0\0" or frame[3:5] == b"\0\0":
        return False
    ids, samplings = frame[6::3], frame[7::3]
    if len(frame) != 6 + 3 * frame[5]:
        return False
    if frame[5] == 1:
        return samplings == b"\x11"
    # other ids may mean other colours, as R, G and B
    return ids == b"\x01\x02\x03" and samplings[0] in SAMPLINGS and samplings[1:] == b"\x11\x11"


def _upright(app1: bytes) -> bool:
    """Whether EXIF data, or XMP, turns nothing."""
    if not app1.startswith(EXIF):
        return b"Orientation" not in app1
    tiff = app1[6:]
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return False

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if order == "little" else "big")

    first = number(4, 4)
    entries = number(first, 2)
    if entries > MOST_ENTRIES or first + 2 + 12 * entries > len(tiff):
        return False
    for at in range(first + 2, first + 2 + 12 * entries, 12):  # tag, type, count, value
        if number(at, 2) == ORIENTATION and (number(at + 2, 2), number(at + 4, 4), number(at + 8, 2)) != (SHORT, 1, 1):
            return False
    return True
