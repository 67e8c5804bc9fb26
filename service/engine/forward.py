"""One forward pass for a batch that mixes tasks: shared layers once, each task's own on its rows.

Convolutions and linear layers run once for the whole batch. Right behind one, each row gets its own task's adapter and
norm, with an addition and an activation, in one operator (`behind.py`; on a GPU `RowKernels`). Where the norm is in the
weights already, a convolution, its bias, an addition and an activation are one operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .behind import Behind, Mix
from .chain import Chains, Ending
from .operators import Kernels, Weight
from .overlay import Frame, Layers
from .program import Call, Conv, Linear, LoneNorm, MaxPool, Ref
from .rows import Addressed


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
        chains: its first steps, as one call does them.
    """

    frame: Frame
    layers: Layers
    constants: Mapping[int, Tensor]
    chains: Chains = field(default_factory=Chains)


def features(
    body: Body,
    weights: Mapping[str, Weight],
    segments: Sequence[Segment],
    images: Tensor,
    kernels: Kernels,
    *,
    folded: bool = False,
    addressed: Addressed | None = None,
) -> Tensor:
    """Run the body once for a batch.

    Args:
        body: the traced network and what it has of its own.
        weights: parameter name -> weight of every convolution and linear layer, in the compute dtype.
        segments: in order, together all rows; a single one where `folded`.
        images: normalised [N, 3, H, W] in the compute dtype, in memory that may be written over by the next forward.
        kernels: the operators to use.
        folded: whether the norm behind a layer is in its weight.
        addressed: what each row's task has behind the layers; there are no segments then.

    Returns:
        [N, features] in the compute dtype.
    """
    program = body.frame.program
    values: list[Any] = [None] * program.values
    values[0] = images
    for index, constant in body.constants.items():
        values[index] = constant
    if addressed is not None:
        run: _Run = _Addressed(body, weights, addressed, kernels)
    else:
        run = (_Folded if folded else _Run)(body, weights, segments, kernels)
    first, led = 0, dict[int, Tensor]()
    if kernels.ours and images.device.type == "cpu":
        first, led = body.chains.lead(program, weights, run.ending, images)
    for index, value in led.items():
        values[index] = value
    for step, done in zip(program.steps[first:], program.last_reads[first:], strict=True):
        if isinstance(step, Conv):
            values[step.out] = run.conv(step, values[step.source], None if step.add is None else values[step.add])
        elif isinstance(step, Linear):
            values[step.out] = run.linear(step, values[step.source])
        elif isinstance(step, LoneNorm):
            values[step.out] = run.lone_norm(step, values[step.source])
        elif isinstance(step, MaxPool):
            values[step.out] = kernels.max_pool(values[step.source], step)
        else:
            values[step.out] = _call(step, values)
        for index in done:
            values[index] = None
    result: Tensor = values[program.result]
    memories = {value.untyped_storage().data_ptr() for value in (images, *led.values())}
    return result.clone() if result.untyped_storage().data_ptr() in memories else result  # the next forward's too


class _Run:
    """One forward's fixed arguments, and what its rows have behind each layer, which is worked out once."""

    def __init__(
        self, body: Body, weights: Mapping[str, Weight], segments: Sequence[Segment], kernels: Kernels
    ) -> None:
        self.weights = weights
        self.kernels = kernels
        self.mixes = {
            module: Mix([(s.start, s.stop, s.layers.behind.get(module, default)) for s in segments])
            for module, default in self.defaults(body).items()
        }

    def defaults(self, body: Body) -> Mapping[str, Behind]:
        """What the backbone has behind each layer that this forward looks behind."""
        return body.layers.behind

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        weight, mix = self.weights[step.weight], self.mixes[step.module]
        if mix.one is not None and mix.one.alone:
            return self.kernels.conv2d(x, weight, mix.one.bias, step, add, step.act)
        y = self.kernels.conv2d(x, weight, None if mix.compiled else mix.bias, step, None, None)
        return self.kernels.behind(y, mix, add, step.act)

    def ending(self, step: Conv) -> Ending | None:
        """What stands behind a convolution, for a chain."""
        mix = self.mixes[step.module]
        if mix.one is not None and mix.one.alone:
            return Ending(bias=mix.one.bias)
        return Ending(mix=mix) if mix.compiled else None

    def linear(self, step: Linear, x: Tensor) -> Tensor:
        weight, mix = self.weights[step.weight], self.mixes[step.module]
        if mix.one is not None and mix.one.alone:
            return self.kernels.linear(x, weight, mix.one.bias)
        return self.kernels.behind(self.kernels.linear(x, weight, None if mix.compiled else mix.bias), mix)

    def lone_norm(self, step: LoneNorm, x: Tensor) -> Tensor:
        return self.kernels.behind(x, self.mixes[step.norm.module], fresh=False)


class _Folded(_Run):
    """A forward whose weights have the norms behind them in them."""

    def __init__(
        self, body: Body, weights: Mapping[str, Weight], segments: Sequence[Segment], kernels: Kernels
    ) -> None:
        super().__init__(body, weights, segments, kernels)
        self.biases = segments[0].layers.biases

    def defaults(self, body: Body) -> Mapping[str, Behind]:
        lone = (step.norm.module for step in body.frame.program.steps if isinstance(step, LoneNorm))
        return {module: body.layers.behind[module] for module in lone}

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        return self.kernels.conv2d(x, self.weights[step.weight], self.biases[step.weight], step, add, step.act)

    def ending(self, step: Conv) -> Ending:
        return Ending(bias=self.biases[step.weight])

    def linear(self, step: Linear, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self.weights[step.weight], self.biases[step.weight])


class _Addressed(_Run):
    """A forward in which each row's own numbers are found at its address."""

    def __init__(self, body: Body, weights: Mapping[str, Weight], addressed: Addressed, kernels: Kernels) -> None:
        super().__init__(body, weights, [Segment(0, len(addressed.addresses), _NOTHING)], kernels)
        assert kernels.rows is not None
        self.by_row = kernels.rows
        self.addresses = addressed.addresses
        self.form = addressed.form

    def conv(self, step: Conv, x: Tensor, add: Tensor | None) -> Tensor:
        weight, column = self.weights[step.weight], self.form.columns.get(step.module)
        if column is None:
            return self.kernels.conv2d(x, weight, None, step, add, step.act)
        if step.module not in self.form.tapped:
            y = self.kernels.conv2d(x, weight, None, step, None, None)
            return self.by_row.scale(y, self.addresses, column, add, step.act)
        y = self.kernels.conv2d(x, weight, self.mixes[step.module].bias, step, None, None)
        return self.by_row.taps(y, self.addresses, column, add, step.act)

    def ending(self, step: Conv) -> Ending | None:
        return None

    def lone_norm(self, step: LoneNorm, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.preserve_format)  # others may read x
        return self.by_row.scale(y, self.addresses, self.form.columns[step.norm.module], None, None)


_NOTHING = Layers("", {}, {}, {})


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
