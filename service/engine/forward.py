"""One forward pass for a batch that mixes tasks: shared layers once, each task's own on its rows.

Convolutions and linear layers run once for the whole batch. Right behind one, the rows of each segment get their
adapter and norm; where all rows take the same path nothing is cut or copied. Where the norm is in the weights already,
a convolution, its bias, an addition and an activation are one operator. Where the operators can (`RowKernels`), one of
them does what every row's own task has there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .operators import Kernels, finish
from .overlay import Behind, Frame, Layers
from .program import Call, Conv, Linear, LoneNorm, Norm, Ref
from .rows import Rows


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a batch that take the same path through the body."""

    start: int
    stop: int
    layers: Layers


@dataclass(frozen=True, slots=True)
class Body:
    """All that a forward needs of the backbone besides the weights that tasks may own.

    Attributes:
        frame: the traced network, its norms and biases.
        layers: what the backbone itself has behind its layers, where a segment brings nothing.
        constants: values that the program starts with.
    """

    frame: Frame
    layers: Layers
    constants: Mapping[int, Tensor]


def features(
    body: Body,
    weights: Mapping[str, Tensor],
    segments: Sequence[Segment],
    images: Tensor,
    kernels: Kernels,
    *,
    folded: bool = False,
    rows: Rows | None = None,
) -> Tensor:
    """Run the body once for a batch.

    Args:
        body: the traced network and what it has of its own.
        weights: parameter name -> weight of every convolution and linear layer, in the compute dtype.
        segments: in order, together all rows; a single one where `folded`.
        images: normalised [N, 3, H, W] in the compute dtype.
        kernels: the operators to use.
        folded: whether the norm behind a layer is in its weight.
        rows: what each row's task has behind the layers; there are no segments then.

    Returns:
        [N, features] in the compute dtype.
    """
    program = body.frame.program
    values: list[Any] = [None] * program.values
    values[0] = images
    for index, constant in body.constants.items():
        values[index] = constant
    if rows is not None:
        run: _Run = _Rowed(body, weights, rows, kernels)
    else:
        run = (_Folded if folded else _Run)(body, weights, segments, kernels)
    for step, done in zip(program.steps, program.last_reads, strict=True):
        if isinstance(step, Conv):
            values[step.out] = run.conv(step, values[step.source], None if step.add is None else values[step.add])
        elif isinstance(step, Linear):
            values[step.out] = run.linear(step, values[step.source])
        elif isinstance(step, LoneNorm):
            values[step.out] = run.lone_norm(step.norm, values[step.source])
        else:
            values[step.out] = _call(step, values)
        for index in done:
            values[index] = None
    return values[program.result]


class _Run:
    """One forward's fixed arguments."""

    def __init__(
        self, body: Body, weights: Mapping[str, Tensor], segments: Sequence[Segment], kernels: Kernels
    ) -> None:
        self.body = body
        self.weights = weights
        self.segments = segments
        self.kernels = kernels

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        weight, behind = self.weights[step.weight], self.behind(step.module)
        bias = behind[0].bias if _one(b.bias for b in behind) else None
        if _one(behind) and behind[0].taps is None and behind[0].norm is None:
            return self.kernels.conv2d(x, weight, bias, step, add, step.act)
        y = self.kernels.conv2d(x, weight, bias, step, None, None)
        if _one(behind) and behind[0].taps is not None:
            return self.kernels.depthwise(y, behind[0].taps, behind[0].shift, add, step.act, reuse=step.reuse)
        return finish(self.after(y, behind, step.norm, biased=bias is not None), add, step.act)

    def linear(self, step: Linear, x: Tensor) -> Tensor:
        behind = self.behind(step.module)
        bias = behind[0].bias if _one(b.bias for b in behind) else None
        y = self.kernels.linear(x, self.weights[step.weight], bias)
        return self.after(y, behind, step.norm, biased=bias is not None)

    def lone_norm(self, norm: Norm, x: Tensor) -> Tensor:
        return self.after(x, self.behind(norm.module), norm, biased=True)

    def after(self, y: Tensor, behind: Sequence[Behind], norm: Norm | None, *, biased: bool) -> Tensor:
        """What each segment has behind a shared layer: the rows [N, C, …] of all, in new memory or in y's."""
        if _one(behind):
            return self.own(y, behind[0], norm, biased=biased)
        out = torch.empty_like(y)
        for segment, own in zip(self.segments, behind, strict=True):
            rows = slice(segment.start, segment.stop)
            out[rows] = self.own(y[rows], own, norm, biased=biased)
        return out

    def own(self, y: Tensor, own: Behind, norm: Norm | None, *, biased: bool) -> Tensor:
        if own.bias is not None and not biased:
            y = y + own.bias.view(1, -1, *(1,) * (y.dim() - 2))
        if own.taps is not None:
            return self.kernels.depthwise(y, own.taps, own.shift, None, None, reuse=False)
        if own.norm is None or norm is None:
            return y
        t = own.norm
        return self.kernels.batch_norm(y, t.running_mean, t.running_var, t.weight, t.bias, False, 0.0, norm.eps)

    def behind(self, module: str) -> list[Behind]:
        """Behind one layer, for each segment."""
        default = self.body.layers.behind[module]
        return [segment.layers.behind.get(module, default) for segment in self.segments]


class _Folded(_Run):
    """A forward whose weights have the norms in them."""

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        weight, bias = self.weights[step.weight], self.segments[0].layers.biases[step.weight]
        return self.kernels.conv2d(x, weight, bias, step, add, step.act)

    def linear(self, step: Linear, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self.weights[step.weight], self.segments[0].layers.biases[step.weight])


class _Rowed(_Run):
    """A forward in which each row's own numbers are found at its address."""

    def __init__(self, body: Body, weights: Mapping[str, Tensor], rows: Rows, kernels: Kernels) -> None:
        super().__init__(body, weights, [Segment(0, len(rows.addresses), _NOTHING)], kernels)
        assert kernels.rows is not None
        self.own_rows = kernels.rows
        self.rows = rows

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        form, weight = self.rows.form, self.weights[step.weight]
        column = form.columns.get(step.module)
        if column is None:
            return self.kernels.conv2d(x, weight, None, step, add, step.act)
        if step.module not in form.tapped:
            y = self.kernels.conv2d(x, weight, None, step, None, None)
            return self.own_rows.scale(y, self.rows.addresses, column, add, step.act)
        y = self.kernels.conv2d(x, weight, self.behind(step.module)[0].bias, step, None, None)
        return self.own_rows.taps(y, self.rows.addresses, column, add, step.act)

    def lone_norm(self, norm: Norm, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.preserve_format)  # others may read x
        return self.own_rows.scale(y, self.rows.addresses, self.rows.form.columns[norm.module], None, None)


_NOTHING = Layers("", {}, {}, {})


def _one(items: Iterable[object]) -> bool:
    """Whether all are the same object."""
    return len({id(item) for item in items}) == 1


def _call(step: Call, values: Sequence[Any]) -> Any:
    def fetch(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return values[argument.index]
        if isinstance(argument, list):
            return [fetch(item) for item in argument]
        if isinstance(argument, tuple):
            return tuple(fetch(item) for item in argument)
        if isinstance(argument, slice):
            return slice(fetch(argument.start), fetch(argument.stop), fetch(argument.step))
        return argument

    return step.function(*(fetch(a) for a in step.args), **{name: fetch(a) for name, a in step.kwargs.items()})
