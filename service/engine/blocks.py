"""How one launch over a whole view is divided: blocks of positions, none of them of two layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import ALIGN, Layout
from .places import Place

BLOCK = 4096
"""Positions that one program of the launch writes, at most; a multiple of `layout.ALIGN`."""
COLUMNS = 6
SHIFT = 32


def blocks_of(layout: Layout) -> Tensor | None:
    """The table that `gpu.masking` goes by; None where a view is in several pieces or too large for it.

    Returns:
        int64 [blocks, 6] on the layout's device. A block has the positions from `start` to `stop`, both multiples of
        64, of one layer; the latter may be in the zeros behind it. Its first position is the `into`-th of the numbers
        of output channel `first`, of all layers' channels one after the other; the layer's last channel is `last`. A
        channel has n numbers: i // n is i * `reciprocal` >> 32.
    """
    plain = all(type(place) is Place for place in layout.places.values())  # a channel is one piece
    if not plain or layout.total >= 1 << 31:
        return None
    rows: list[tuple[int, ...]] = []
    channel = 0
    for name, place in layout.places.items():
        span = place.length // place.shape[0]
        if (span + BLOCK) * span >= 1 << SHIFT:  # the reciprocal would not be exact any more
            return None
        reciprocal = (1 << SHIFT) // span + 1
        last = channel + place.shape[0] - 1
        begin, end = layout.offsets[name], layout.offsets[name] + -(-place.length // ALIGN) * ALIGN
        for start in range(begin, end, BLOCK):
            done, into = divmod(start - begin, span)
            rows.append((start, min(start + BLOCK, end), into, reciprocal, channel + done, last))
        channel += place.shape[0]
    return torch.tensor(rows, dtype=torch.int64).to(next(iter(layout.places.values())).device)
