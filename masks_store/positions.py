"""What is set in a mask, as places: how claims and their values are read and written.

Through numpy's `flatnonzero`. torch's own search, `where`, `masked_scatter_` and indexing by a mask branch at each
position, and no processor foresees the branches of masks without order, as pruned ones are: they take four to seven
times as long.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def positions(mask: Tensor) -> Tensor:
    """Where a mask is set.

    Args:
        mask: bool of any shape, on the CPU.

    Returns:
        int64 [ones], ascending, row-major.
    """
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def put(into: Tensor, where: Tensor, values: Tensor) -> None:
    """Write values, in place; no other position is touched.

    Args:
        into: contiguous, of any shape, on any device.
        where: int64 [N], row-major places in it; on any device.
        values: [N], of any type that can be converted to that of `into`, on any device.
    """
    into.view(-1).index_copy_(0, where.to(into.device), values.to(into.device, into.dtype))


def chosen(values: Tensor, mask: Tensor) -> Tensor:
    """where(mask, values, +0.0), bit by bit: the product of the numbers' bits with 0 or 1, which needs no branch.

    Args:
        values: float32 of any shape, contiguous, on the CPU.
        mask: bool of that shape.

    Returns:
        A new tensor.
    """
    out = torch.empty_like(values)
    np.multiply(values.numpy().view(np.int32), mask.numpy().view(np.int8), out=out.numpy().view(np.int32))
    return out
