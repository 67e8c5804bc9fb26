"""Write a task's view of one layer, in one pass: where(bit, weight x the scale of its output channel, +0.0).

The choice is made on the bits of the product, `product & (all ones or all zeros)`: what a hidden position holds, NaN
and infinity included, cannot show, and the sign of zero is plus (METHODS §0 rule 3).

On the CPU a small C function does it (`native/masking.c`), where the package could be built with a compiler; the same
in torch's operators is the fallback and the way on a GPU. Both give the same bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .compiled import MASKS, Compiled, compiled

CHUNK = 1 << 17  # positions per step in torch: the temporaries stay in a core's cache
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_NAMES = dict(zip((torch.float32, torch.bfloat16), MASKS, strict=True))


def write(out: Tensor, source: Tensor, bits: Tensor | None, scale: Tensor | None) -> None:
    """Write one layer.

    Args:
        out: [length] of float32 or bfloat16, overwritten.
        source: [length] of the same dtype and device.
        bits: uint8, at least length / 8, the first position in the lowest bit, 1 where shown; None: all are.
        scale: float32 [blocks, period], for the positions as `layout.Place.channels` has them; None: 1. The product is
            rounded once, to the dtype of `out`.
    """
    library = compiled() if out.device.type == "cpu" else None
    if library is None:
        write_in_torch(out, source, bits, scale)
    else:
        write_compiled(library, out, source, bits, scale)


def write_compiled(library: Compiled, out: Tensor, source: Tensor, bits: Tensor | None, scale: Tensor | None) -> None:
    """`write` in C; all on the CPU."""
    length = len(out)
    span, period = (length, 1) if scale is None else (length // len(scale), scale.shape[1])
    held = None if scale is None else scale.contiguous()  # alive until the call is done
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in (out, source, bits, held))
    getattr(library.library, _NAMES[out.dtype])(*pointers, length, span, period)


def write_in_torch(out: Tensor, source: Tensor, bits: Tensor | None, scale: Tensor | None) -> None:
    """`write` in torch's operators."""
    span = 8 if scale is None else len(out) // len(scale)
    step = max(CHUNK // span, 1) * span  # whole blocks of one scale
    step *= 1 if step % 8 == 0 else 8  # and whole bytes of bits
    for start in range(0, len(out), step):
        part = slice(start, min(start + step, len(out)))
        values = source[part]
        if scale is not None:
            own = scale[start // span : part.stop // span]  # [b, period]
            values = (values.view(len(own), -1, own.shape[1]) * own[:, None]).view(-1).to(out.dtype)
        if bits is None:
            out[part].copy_(values)
            continue
        integer = _INTEGERS[out.dtype]
        packed = bits[start // 8 : -(-part.stop // 8)]
        shown = _shown(integer, bits.device).index_select(0, packed.int()).view(-1)[: len(values)]
        torch.bitwise_and(values.view(integer), shown, out=out[part].view(integer))


@cache
def _shown(integer: torch.dtype, device: torch.device) -> Tensor:
    """[256, 8]: for each bit of a byte 0 where hidden, all ones where shown."""
    bytes_ = np.arange(256, dtype=np.uint8)[:, None]
    return torch.from_numpy(-np.unpackbits(bytes_, axis=1, bitorder="little").astype(np.int32)).to(device, integer)
