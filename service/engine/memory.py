"""Memory for weights and activations on a CPU, in huge pages where the system has them.

A network's weights are read once in each forward, from end to end. In pages of 4 KB their addresses alone are more than
a processor keeps at hand.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

HUGE = 1 << 21
"""Bytes of a huge page of the usual processors."""
LEAST = 1 << 24
"""Bytes of the smallest memory that is worth them: what is taken is rounded up to whole pages."""


def zeros(size: int) -> Tensor:
    """uint8 [size], from a multiple of 64 on."""
    if size < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    room = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(room, dtype=torch.uint8)  # keeps `room`; zeros, as the kernel gives them
    return whole[-whole.data_ptr() % HUGE :][:size]
