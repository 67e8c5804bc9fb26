"""One row of numbers for each task: what it has behind the shared layers, found by an address. A GPU's way; a CPU's is
`behind.py`.

A batch of many tasks passes one address an image, so one launch of an operator serves every mix, and so does a
recorded launch: the rows stay where they are, only the addresses change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowForm:
    """Where each number of a row stands. Rows of one form may be mixed.

    Attributes:
        tapped: modules of the convolutions with an adapter behind.
        columns: module -> its first column, of whatever has an adapter, a norm or a bias behind, or is a norm alone:
            [9, C] taps and [C] shift where tapped, else [C] scale and [C] shift.
    """

    tapped: frozenset[str]
    columns: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Row:
    """One task's numbers, float32, on the device."""

    form: RowForm
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Addressed:
    """A batch's.

    Attributes:
        form: of all.
        addresses: int64 [N] on the device, of each image's row.
    """

    form: RowForm
    addresses: Tensor


def addresses_of(tensors: Sequence[Tensor], counts: Sequence[int], length: int) -> Tensor:
    """int64 [length] on the CPU: where the tensor of each image lies; the first one's for those that fill the batch up.

    Args:
        tensors: one a task.
        counts: images of each.
        length: of the batch with what fills it up.
    """
    found = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    found = found.repeat_interleave(torch.tensor(counts))
    return torch.cat([found, found[:1].expand(length - len(found))])
