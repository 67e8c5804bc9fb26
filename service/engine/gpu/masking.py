"""Write a whole view in one launch: where(bit, weight x the scale of its output channel, +0.0).

The same bits as `engine/masking.py`: the product is in float32 and rounded once, to the nearest, ties to even; the
choice is a selection, so what a hidden position holds, NaN and infinity included, cannot show.
"""

# Triton's language looks like Python, but its types are its own.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..blocks import BLOCK, COLUMNS, SHIFT


@triton.jit
def _write(
    out,
    source,
    bits,
    scale,
    blocks,
    MASKED: tl.constexpr,
    SCALED: tl.constexpr,
    NARROW: tl.constexpr,
    BYTES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT: tl.constexpr,
):
    row = blocks + tl.program_id(0) * COLUMNS
    start = tl.multiple_of(tl.load(row).to(tl.int32), 64)
    stop = tl.multiple_of(tl.load(row + 1).to(tl.int32), 64)
    byte = tl.arange(0, BYTES)[:, None]  # a row for each byte of bits: 8 positions
    bit = tl.arange(0, 8)[None, :]
    local = byte * 8 + bit  # [BYTES, 8]
    inside = (start + byte * 8 < stop) & (bit < 8)
    value = tl.load(source + start + local, mask=inside, other=0.0)
    if SCALED:
        into = tl.load(row + 2)
        reciprocal = tl.load(row + 3)
        first = tl.load(row + 4)
        last = tl.load(row + 5)
        channel = first + (((into + local) * reciprocal) >> SHIFT)  # int64; exact: blocks.py
        channel = tl.minimum(channel, last)  # of the zeros behind the layer
        value = value.to(tl.float32) * tl.load(scale + channel, mask=inside, other=1.0)
        if NARROW:  # to bfloat16, in integers: the interpreter's own conversion cuts off
            number = value.to(tl.uint32, bitcast=True)
            number = (number + 0x7FFF + ((number >> 16) & 1)) >> 16
            value = number.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    if MASKED:
        shown = tl.load(bits + start // 8 + byte, mask=start + byte * 8 < stop, other=0).to(tl.int32)
        value = tl.where(((shown >> bit) & 1) != 0, value, 0.0)
    tl.store(out + start + local, value, mask=inside)


def write_view(out: Tensor, source: Tensor, bits: Tensor | None, scale: Tensor | None, blocks: Tensor) -> None:
    """Write a view.

    Args:
        out: `Weights.flat`, float32 or bfloat16, overwritten.
        source: the same of the base or the pool.
        bits: `Layout.bits`; None: all are shown.
        scale: float32, the scale of every output channel, layer after layer; None: 1.
        blocks: `blocks.blocks_of` the layout.
    """
    _write[(len(blocks),)](
        out,
        source,
        source if bits is None else bits,
        source if scale is None else scale,
        blocks,
        MASKED=bits is not None,
        SCALED=scale is not None,
        NARROW=out.element_size() == 2,
        BYTES=BLOCK // 8,
        COLUMNS=COLUMNS,
        SHIFT=SHIFT,
        num_warps=8,
    )
