"""What each picture's own task has behind a shared layer, for all rows of a batch in one operator.

On the CPU a C function does it in one pass over the activations, in place: for each row its own task's depthwise taps
and shift, or scale and shift, then the addition and the activation. The same in torch's operators, task by task, is the
fallback, and the way on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .compiled import Compiled, compiled

LANES = 16  # a table's rows are a multiple of this long: `MOST_LANES` of native/behind.c
SCRATCH = 3 * 64  # numbers for each thread and pixel of a line: three lines of `WIDEST` channels
BOUNDS: Mapping[str | None, tuple[float, float]] = {
    None: (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
}
"""Activation -> what it holds numbers between."""
GRAIN = 1 << 15  # fewer numbers than this are one thread's work, as in torch


@dataclass(frozen=True, slots=True)
class NormTensors:
    """One eval-mode BatchNorm's tensors, float32 [C] each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def folded(self, eps: float) -> tuple[Tensor, Tensor]:
        """The same as y = x * scale + shift: (scale, shift), float32 [C]."""
        scale = self.weight.double() / torch.sqrt(self.running_var.double() + eps)
        return scale.float(), (self.bias.double() - self.running_mean.double() * scale).float()


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """What a task has right behind one shared layer, in this order; tasks that share the object take the same path.

    Attributes:
        bias: [C] in the compute dtype.
        taps: an adapter's depthwise kernels [C, 1, 3, 3] in the compute dtype, times the scale of the norm behind them.
        shift: that norm's [C], in the compute dtype.
        norm: where there are no taps.
        eps: the norm's.
        table: all of it for the C function, where that computes; `taps`, `shift` and `norm` are then None. Float32
            [11, C] for an adapter: bias, nine taps, shift; else [2, C]: scale, shift. C is rounded up to LANES.
        alone: whether the bias is all there is.
    """

    bias: Tensor | None = None
    taps: Tensor | None = None
    shift: Tensor | None = None
    norm: NormTensors | None = None
    eps: float = 0.0
    table: Tensor | None = None
    alone: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        norm = self.norm
        own = () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return [t for t in (self.bias, self.taps, self.shift, self.table, *own) if t is not None]


def table_of(bias: Tensor | None, taps: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """`Behind.table` for what comes in this order, float32, each where there is one; None where nothing does.

    Args:
        bias, scale, shift: [C].
        taps: [C, 1, 3, 3].
    """
    given = next((tensor for tensor in (bias, taps, scale, shift) if tensor is not None), None)
    if given is None:
        return None
    zeros, ones = torch.zeros(len(given)), torch.ones(len(given))
    bias, shift = (zeros if tensor is None else tensor for tensor in (bias, shift))
    scale = ones if scale is None else scale
    if taps is None:
        rows = torch.stack([scale, bias * scale + shift])
    else:
        rows = torch.cat([bias[None], taps.view(-1, 9).T * scale, shift[None]])
    return F.pad(rows, (0, -len(given) % LANES)).contiguous()


class Mix:
    """What the rows of one batch have behind one layer, of as many tasks as there are in it.

    Args:
        parts: (first row, row behind the last, what they have) in order, together all rows.

    Attributes:
        parts: as given.
        one: what all rows have, where it is the same.
        compiled: whether it is for the C function.
    """

    __slots__ = ("compiled", "one", "parts")

    def __init__(self, parts: Sequence[tuple[int, int, Behind]]) -> None:
        self.parts = parts
        first = parts[0][2]
        self.one = first if all(own is first for _, _, own in parts) else None
        self.compiled = any(own.table is not None for _, _, own in parts)

    @property
    def bias(self) -> Tensor | None:
        """The bias that all rows have, where it is the same."""
        bias = self.parts[0][2].bias
        return bias if all(own.bias is bias for _, _, own in self.parts) else None

    def addresses(self, channels: int) -> npt.NDArray[np.uintp]:
        """For each row that of its table, as the C function takes it: plus 1 where it is a depthwise's."""
        tables = [_nothing(channels) if own.table is None else own.table for _, _, own in self.parts]
        assert all(table.shape[1] == channels + -channels % LANES for table in tables)
        found = np.array([table.data_ptr() + (len(table) > 2) for table in tables], np.uintp)
        return found.repeat([stop - start for start, stop, _ in self.parts])


@cache
def _nothing(channels: int) -> Tensor:
    """The table that changes nothing."""
    return F.pad(torch.stack([torch.ones(channels), torch.zeros(channels)]), (0, -channels % LANES))


def behind(y: Tensor, mix: Mix, add: Tensor | None = None, act: str | None = None, *, fresh: bool = True) -> Tensor:
    """act(what each row has behind a layer + add).

    Args:
        y: [N, C, H, W], channels last, or [N, C]: what the layer gives; with the bias that all rows share where
            torch's operators do it (`Mix.bias`), without any where the C function does, whose tables have it.
        mix: what they have.
        add: of any shape that goes with y.
        act: `relu`, `relu6` or None.
        fresh: whether y's memory may be written over.

    Returns:
        As y, in its memory or in new.
    """
    if not mix.compiled:
        return behind_in_torch(y, mix, add, act)
    library = compiled()
    assert library is not None, "tables are made only where the C functions are"
    return behind_compiled(library, y, mix, add, act, fresh=fresh)


def behind_compiled(
    library: Compiled,
    y: Tensor,
    mix: Mix,
    add: Tensor | None = None,
    act: str | None = None,
    *,
    fresh: bool = True,
    threads: int | None = None,
) -> Tensor:
    """`behind` in C, for what has tables; on the CPU, float32 or bfloat16. By default on torch's number of threads."""
    assert y.dtype in (torch.float32, torch.bfloat16), "the C function reads no other numbers"
    order = torch.channels_last if y.dim() == 4 else torch.contiguous_format
    n, channels, height, width = y.shape if y.dim() == 4 else (*y.shape, 1, 1)
    if add is not None and (add.shape != y.shape or add.dtype != y.dtype):
        return finish(behind_compiled(library, y, mix, fresh=fresh, threads=threads), add, act)
    held = y.contiguous(memory_format=order)  # a copy only where it lies otherwise
    added = None if add is None else add.contiguous(memory_format=order)
    out = held if fresh or held is not y else torch.empty_like(held)
    if threads is None:
        threads = torch.get_num_threads() if y.numel() > GRAIN else 1
    addresses = mix.addresses(channels)
    assert len(addresses) == n, "the parts are all rows, no more and no fewer"
    scratch = torch.empty(threads * SCRATCH * (width + 2))
    library.library.taskpack_behind(
        out.data_ptr(),
        held.data_ptr(),
        None if added is None else added.data_ptr(),
        addresses.ctypes.data,
        scratch.data_ptr(),
        n,
        height,
        width,
        channels,
        y.dtype == torch.bfloat16,
        *BOUNDS[act],
        library.parallel,
        threads,
        library.level,
    )
    return out


def behind_in_torch(y: Tensor, mix: Mix, add: Tensor | None = None, act: str | None = None) -> Tensor:
    """`behind` in torch's operators, for what has no tables. A bias that all rows share is in y already."""
    biased = mix.bias is not None
    if mix.one is not None:
        return finish(_own(y, mix.one, biased=biased), add, act)
    out = torch.empty_like(y)
    for start, stop, own in mix.parts:
        out[start:stop] = _own(y[start:stop], own, biased=biased)
    return finish(out, add, act)


def _own(y: Tensor, own: Behind, *, biased: bool) -> Tensor:
    if own.bias is not None and not biased:
        y = y + own.bias.view(1, -1, *(1,) * (y.dim() - 2))
    if own.taps is not None:
        return F.conv2d(y, own.taps, own.shift, 1, 1, 1, len(own.taps))
    if own.norm is None:
        return y
    t = own.norm
    return F.batch_norm(y, t.running_mean, t.running_var, t.weight, t.bias, False, 0.0, own.eps)


def finish(y: Tensor, add: Tensor | None, act: str | None) -> Tensor:
    """act(y + add), in y's memory where the sum has y's shape."""
    if add is not None:
        y = y.add_(add) if add.shape == y.shape else y + add
    if act == "relu":
        y.relu_()
    elif act == "relu6":
        F.relu6(y, inplace=True)
    return y
