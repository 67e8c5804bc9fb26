"""Max pooling on a CPU: a small C function (`native/pooling.c`) for what lies channels last, else torch's operator.

torch's finds the place of each maximum too, which nothing here asks for. Both give the same bits, but for the payload
of a NaN.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from .behind import GRAIN
from .compiled import Compiled, compiled
from .program import MaxPool


def max_pool(x: Tensor, step: MaxPool) -> Tensor:
    """The largest of each window; NaN where one is in it.

    Args:
        x: float32 or bfloat16 [N, C, H, W].
        step: kernel, stride and padding.

    Returns:
        [N, C, H', W'], channels last where x is.
    """
    library = compiled() if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) else None
    if library is None or x.dtype not in (torch.float32, torch.bfloat16):
        return F.max_pool2d(x, step.kernel, step.stride, step.padding)
    return max_pool_compiled(library, x, step)


def max_pool_compiled(library: Compiled, x: Tensor, step: MaxPool, *, threads: int | None = None) -> Tensor:
    """`max_pool` in C, by default on torch's number of threads.

    Raises:
        ValueError: a padding of more than half of the kernel, or maps smaller than it.
    """
    n, channels, *sides = x.shape
    out_sides = pooled_sides((sides[0], sides[1]), step)
    if out_sides is None:
        raise ValueError(f"windows {step.kernel} padded by {step.padding} do not fit maps {sides}")
    out = torch.empty((n, channels, *out_sides), dtype=x.dtype, memory_format=torch.channels_last)
    numbers = (n, *sides, channels, *out_sides, *step.kernel, *step.stride, *step.padding)
    if threads is None:
        threads = torch.get_num_threads() if x.numel() > GRAIN else 1
    library.library.taskpack_max_pool(
        out.data_ptr(),
        x.data_ptr(),
        (ctypes.c_int64 * len(numbers))(*numbers),
        x.dtype == torch.bfloat16,
        library.parallel,
        threads,
        library.level,
    )
    return out


def pooled_sides(sides: tuple[int, int], step: MaxPool) -> tuple[int, int] | None:
    """(H', W') of what is pooled from (H, W); None for a padding of more than half of the kernel, or maps too small."""
    geometry = list(zip(sides, step.kernel, step.stride, step.padding, strict=True))
    if any(2 * pad > kernel or size + 2 * pad < kernel for size, kernel, _, pad in geometry):
        return None
    y, x = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in geometry)
    return y, x
