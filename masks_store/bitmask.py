"""Coded bitmasks: one bit per weight or unit, stored close to their entropy, read without trust.

Three codecs, laid out to the bit in FORMAT.md; the encoder keeps the smallest:

raw      the packed bits; nothing beats them around a share of ones of one half
deflate  the packed bits as a zlib stream; Huffman codes alone suit independent bits, matches suit structure
gaps     the distances between the rarer bits, split as Rice codes split them: low bits as they are, high parts as
         a zlib stream of bytes; for masks of which one kind of bit is rare
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError

try:  # decodes the same streams two to three times as fast
    from isal import isal_zlib as inflater
except ImportError:  # not built for every platform
    import zlib as inflater

Bits: TypeAlias = NDArray[np.bool_]
Bytes: TypeAlias = NDArray[np.uint8]

CODECS = ("raw", "deflate", "gaps")
MAX_BITS = 2**40 - 1

# Gaps are smaller than deflate up to a share of about 0.15, but decode more slowly: they are tried where the rarer
# bit has at most one position in this many.
_RARE = 16
_ESCAPE = 255  # this byte of a high part adds 255 and goes on
_MAX_SHIFT = 31
_FEED, _PIECE = 1 << 16, 1 << 16  # coded bytes fed to zlib, and decoded bytes taken from it, at a time
StreamError = cast("type[Exception]", inflater.error)


@dataclass(frozen=True)
class Coded:
    """A bitmask as a file holds it.

    Attributes:
        codec: "raw", "deflate" or "gaps".
        bits: positions in the mask.
        ones: positions that are set.
        payload: the coded bytes.
    """

    codec: str
    bits: int
    ones: int
    payload: bytes


def entropy_bound(bits: int, ones: int) -> float:
    """Bytes that no code for independent bits of this share can beat: bits * H(ones / bits) / 8."""
    if ones in (0, bits):
        return 0.0
    share = ones / bits
    return -bits * (share * log2(share) + (1 - share) * log2(1 - share)) / 8


def encode(bits: Bits) -> Coded:
    """Code a mask with the codec that makes it smallest; of equals, the first in the order of `CODECS`.

    Args:
        bits: bool [n], n from 0 to 2^40 - 1.

    Raises:
        TypeError: `bits` is not a one-dimensional array of bool.
    """
    if bits.dtype != np.bool_ or bits.ndim != 1:
        raise TypeError(f"a mask is bool [n], not {bits.dtype} {list(bits.shape)}")
    ones = int(np.count_nonzero(bits))
    packed = np.packbits(bits).tobytes()
    candidates = [("raw", packed), ("deflate", _deflate(packed))]
    rare = min(ones, bits.size - ones)
    if rare * _RARE <= bits.size:
        rarely = bits if rare == ones else ~bits
        candidates += [
            ("gaps", _encode_gaps(rarely, shift, inverted=rare != ones)) for shift in _shifts(bits.size, rare)
        ]
    codec, payload = min(candidates, key=lambda candidate: len(candidate[1]))
    return Coded(codec, bits.size, ones, payload)


def decode(coded: Coded) -> Bits:
    """The mask that `coded` holds.

    Takes at most 1.5 bytes of memory per position and 8 MiB, whatever the payload says: a caller that reads a
    stranger's file checks `bits` first.

    Returns:
        bool [coded.bits].

    Raises:
        FormatError: unknown codec, too many or too few bits or ones, bytes left over, set padding bits, a broken
            zlib stream.
    """
    if not 0 <= coded.ones <= coded.bits <= MAX_BITS:
        raise FormatError(f"a mask of {coded.bits} bits cannot hold {coded.ones} ones (at most {MAX_BITS} bits)")
    if coded.codec == "raw":
        return _unpack(coded.payload, coded)
    if coded.codec == "deflate":
        return _unpack(b"".join(_inflate(memoryview(coded.payload), (coded.bits + 7) // 8)), coded)
    if coded.codec == "gaps":
        return _decode_gaps(memoryview(coded.payload), coded)
    raise FormatError(f"mask codec {coded.codec!r} is unknown; this reader knows {', '.join(CODECS)}")


def _unpack(packed: bytes, coded: Coded) -> Bits:
    expected = (coded.bits + 7) // 8
    if len(packed) != expected:
        raise FormatError(f"{coded.bits} bits take {expected} packed bytes, the mask has {len(packed)}")
    array = np.frombuffer(packed, np.uint8)
    padding = expected * 8 - coded.bits
    if padding and packed[-1] & ((1 << padding) - 1):
        raise FormatError(f"the {padding} padding bits after the mask's {coded.bits} bits are not all zero")
    out = np.unpackbits(array, count=coded.bits).view(np.bool_)
    ones = int(np.count_nonzero(out))
    if ones != coded.ones:
        raise FormatError(f"the mask has {ones} ones, its manifest says {coded.ones}")
    return out


def _deflate(data: bytes) -> bytes:
    """The shorter of zlib's Huffman-only and matching streams."""
    coded = _zlib(data, 9, zlib.Z_HUFFMAN_ONLY)
    # Matching is slow on random bits and loses there; the quickest level tells whether there is structure.
    if len(_zlib(data, 1, zlib.Z_DEFAULT_STRATEGY)) < len(coded):
        coded = min(coded, _zlib(data, 9, zlib.Z_DEFAULT_STRATEGY), key=len)
    return coded


def _zlib(data: bytes, level: int, strategy: int) -> bytes:
    engine = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL + 1, strategy)
    return engine.compress(data) + engine.flush()


def _inflate(stream: memoryview, limit: int) -> Iterator[bytes]:
    """The pieces of a zlib stream that must fill `stream` and give at most `limit` bytes."""
    engine = inflater.decompressobj()
    fed, given = 0, 0
    pending: bytes | memoryview = b""
    while not engine.eof:
        if not pending:
            pending, fed = stream[fed : fed + _FEED], fed + _FEED
        try:
            piece = engine.decompress(pending, _PIECE)
        except StreamError as error:
            raise FormatError(f"the mask's zlib stream is broken: {error}") from error
        pending = engine.unconsumed_tail
        given += len(piece)
        if given > limit:
            raise FormatError(f"the mask's zlib stream gives more than the {limit} bytes that its bits need")
        if piece:
            yield piece
        elif not pending and fed >= len(stream) and not engine.eof:
            raise FormatError("the mask's zlib stream ends too early")
    left = len(engine.unused_data) + max(0, len(stream) - fed)
    if left:
        raise FormatError(f"{left} bytes follow the mask's zlib stream")


def _shifts(bits: int, rare: int) -> Iterator[int]:
    """How many low bits to split off: those that leave a mean high part of about 4 to 32."""
    mean = int(log2(bits / rare)) if rare else 0
    return iter(sorted({min(max(0, mean - spare), _MAX_SHIFT) for spare in (2, 3, 4)}))


def _encode_gaps(rarely: Bits, shift: int, inverted: bool) -> bytes:
    gaps = np.diff(np.flatnonzero(rarely), prepend=-1) - 1  # [count]
    high = gaps >> shift
    ends = np.cumsum(high // _ESCAPE + 1)  # one past each high part's last byte
    data = np.full(ends[-1] if ends.size else 0, _ESCAPE, np.uint8)
    data[ends - 1] = high % _ESCAPE
    planes = np.arange(shift - 1, -1, -1)
    low = np.packbits((gaps[:, None] >> planes & 1).astype(np.bool_))  # [count, shift] -> packed
    return bytes([inverted << 7 | shift]) + low.tobytes() + _deflate(data.tobytes())


def _decode_gaps(payload: memoryview, coded: Coded) -> Bits:
    if not payload:
        raise FormatError("a gaps mask has no first byte")
    inverted, shift = bool(payload[0] & 0x80), payload[0] & 0x7F
    if shift > _MAX_SHIFT:
        raise FormatError(f"a gaps mask splits off {shift} low bits; at most {_MAX_SHIFT} are allowed")
    count = coded.bits - coded.ones if inverted else coded.ones
    size = (count * shift + 7) // 8
    if len(payload) < 1 + size:
        raise FormatError(f"{count} gaps of {shift} low bits take {size} bytes, the mask has {len(payload) - 1}")
    low = _LowBits(np.frombuffer(payload[1 : 1 + size], np.uint8), shift, count)
    out = np.full(coded.bits, inverted)
    done, position, open_ended = 0, -1, False
    # Every high part ends in one byte below the escape, and every escape moves on by 255 << shift positions.
    for piece in _inflate(payload[1 + size :], count + (coded.bits >> shift) // _ESCAPE):
        data = np.frombuffer(piece, np.uint8)
        ends = np.flatnonzero(data != _ESCAPE) if _ESCAPE in data else slice(None)
        steps = data.astype(np.int64) << shift
        ended = steps[ends].size
        if done + ended > count:
            raise FormatError(f"the mask has more gaps than the {count} that its manifest says")
        steps[ends] += 1 + low.take(ended)
        reached = np.cumsum(steps, out=steps)
        reached += position
        position, open_ended = int(reached[-1]), data[-1] == _ESCAPE
        if position >= coded.bits:
            raise FormatError(f"the mask's gaps lead past its {coded.bits} bits")
        out[reached[ends]] = not inverted
        done += ended
    if done != count or open_ended:
        raise FormatError(f"the mask has {done} whole gaps, its manifest says {count}")
    return out


class _LowBits:
    """Reads the low bits of one gap after the other."""

    def __init__(self, packed: Bytes, shift: int, count: int) -> None:
        padding = packed.size * 8 - shift * count
        if padding and packed[-1] & ((1 << padding) - 1):
            raise FormatError(f"the {padding} padding bits after the mask's low bits are not all zero")
        self._packed, self._shift, self._done = packed, shift, 0

    def take(self, count: int) -> NDArray[np.int64]:
        """The low parts of the next `count` gaps, int64 [count]."""
        begin, end = self._done * self._shift, (self._done + count) * self._shift
        self._done += count
        bits = np.unpackbits(self._packed[begin // 8 : (end + 7) // 8])[begin % 8 :][: end - begin]
        low = np.zeros(count, np.uint8 if self._shift <= 8 else np.int64)
        for plane in range(self._shift):  # most significant first
            low <<= 1
            low |= bits[plane :: self._shift]
        return low.astype(np.int64)
