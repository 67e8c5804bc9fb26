"""Pixels to the numbers that the network takes, on a CPU: looked up, for each channel has only 256 of them.

By a small C function (`native/pooling.c`) in one pass, where the package could be built with a compiler; else by
torch's operators, one after another. The table is made by them, so both give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masks_store import Preprocess, normalise

from .compiled import Compiled, compiled
from .onednn import thread_memory


def numbers_of(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, 3] -> (x / 255 - mean) / std, [N, 3, H, W] of `dtype`, channels last.

    On a CPU they are valid until this thread's next call.
    """
    library = compiled() if pixels.device.type == "cpu" else None
    if library is None:
        return normalised(pixels, preprocess, dtype)
    return numbers_compiled(library, pixels, preprocess, dtype)


def normalised(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """`numbers_of` in torch's operators, on any device."""
    return normalise(pixels.permute(0, 3, 1, 2), preprocess).to(dtype)


def numbers_compiled(library: Compiled, pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """`numbers_of` in C, into memory that this thread keeps for it."""
    held = pixels.contiguous()
    size = held.numel() * dtype.itemsize
    out = thread_memory("numbers", size)[:size].view(dtype).view(held.shape)
    table = _table(preprocess, dtype)
    library.library.taskpack_pixels(
        out.data_ptr(), held.data_ptr(), table.data_ptr(), held.numel() // 3, out.element_size()
    )
    return out.permute(0, 3, 1, 2)


def _table(preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """[3, 256] of `dtype`: what each channel's values become."""
    key = (preprocess.mean, preprocess.std, dtype)
    if key not in _tables:
        every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
        _tables[key] = normalise(every, preprocess).to(dtype).view(3, 256).contiguous()
    return _tables[key]


_tables: dict[tuple[tuple[float, ...], tuple[float, ...], torch.dtype], Tensor] = {}
