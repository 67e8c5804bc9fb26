"""A network body as a list of steps, traced once, that takes its weights as arguments.

The steps hold names and numbers, never weights: the same program runs every task. Convolutions and linear layers look
their weight up by parameter name in whatever the caller passes; so do norms. What alone reads a convolution is kept
with it: its BatchNorm, so that what a task does to the convolution's output happens in one place, then an addition and
an activation, which the fastest convolutions do while they write their result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.fx.proxy import TraceError
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from masks_store import InvalidInput


@dataclass(frozen=True, slots=True)
class Norm:
    """An eval-mode BatchNorm: the module's name, and its eps."""

    module: str
    eps: float


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution and what alone reads it: act(norm(conv(source) + bias) + value `add`).

    Attributes:
        source: the value that it reads.
        out: the value that it writes.
        add: the value that is added behind the norm; None for none.
        act: `relu`, `relu6` or None.
        reuse: whether `add` is read here for the last time and its memory is nobody else's: the result may go there.
    """

    source: int
    out: int
    module: str
    weight: str
    bias: str | None
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    norm: Norm | None
    add: int | None = None
    act: str | None = None
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of the body (VGG has two), and the BatchNorm right behind it."""

    source: int
    out: int
    module: str
    weight: str
    bias: str | None
    norm: Norm | None


@dataclass(frozen=True, slots=True)
class LoneNorm:
    """A BatchNorm that follows no convolution directly (DenseNet's come before theirs)."""

    source: int
    out: int
    norm: Norm


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Max pooling that rounds the size of its result down; each tuple is vertical, horizontal."""

    source: int
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Call:
    """Anything without weights of its own: activations, pooling, additions, concatenations, reshapes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int


Step = Conv | Linear | LoneNorm | MaxPool | Call


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands in a call's arguments for the value of an earlier step."""

    index: int


@dataclass(frozen=True, slots=True)
class Program:
    """The body's steps in order.

    Attributes:
        steps: value 0 is the input, step i writes value `steps[i].out`.
        last_reads: for each step, the values that no later step reads.
        result: the value that holds the features.
        constants: values that are buffers of the network outside its norms (position tables and the like), by name.
        values: how many values there are.
    """

    steps: tuple[Step, ...]
    last_reads: tuple[tuple[int, ...], ...]
    result: int
    constants: Mapping[int, str]
    values: int


def trace(body: nn.Module) -> Program:
    """Trace a body in eval mode into a program.

    Args:
        body: [N, 3, H, W] float to [N, features] float, in eval mode; it may be on the meta device, for no number is
            looked at.

    Raises:
        InvalidInput: the body cannot be traced, or holds a layer with weights that no step knows.
    """
    if body.training:
        raise InvalidInput("the network must be in eval mode to be traced; call .eval() on it first")
    try:
        graph = fx.Tracer().trace(body)
    except (TraceError, TypeError, ValueError) as error:
        raise InvalidInput(f"this network cannot be served: its forward cannot be traced ({error})") from error
    return _Lowering(body).program(graph)


class _Lowering:
    """One pass over the traced graph; collects every fault before it raises."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self.index: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        self.constants: dict[int, str] = {}
        self.faults: list[str] = []
        self.absorbed: dict[fx.Node, fx.Node] = {}  # a node -> the convolution's that took it along

    def program(self, graph: fx.Graph) -> Program:
        result = 0
        for node in graph.nodes:
            if node.op == "output":
                result = self.result(node.args[0])
            elif node in self.absorbed:
                self.index[node] = self.index[self.absorbed[node]]
            else:
                self.index[node] = len(self.index)
                self.lower(node)
        self.check_norms()
        if self.faults:
            raise InvalidInput(f"this network cannot be served: {'; '.join(self.faults)}", self.faults)
        last_reads = _last_reads(self.steps, result, self.constants)
        steps = _reusing(self.steps, last_reads)
        return Program(tuple(steps), last_reads, result, self.constants, len(self.index))

    def result(self, given: object) -> int:
        if isinstance(given, fx.Node):
            return self.index[given]
        self.faults.append("its forward gives something else than one tensor, the features")
        return 0

    def check_norms(self) -> None:
        """What a task has behind a layer is kept by the layer's name, so it must be the same wherever it is used."""
        norms: dict[str, set[Norm | None]] = {}
        for step in self.steps:
            if isinstance(step, Conv | Linear):
                norms.setdefault(step.module, set()).add(step.norm)
        self.faults += [
            f"{name} is used twice, with different norms" for name, found in norms.items() if len(found) > 1
        ]

    def lower(self, node: fx.Node) -> None:
        out = self.index[node]
        if node.op == "call_module":
            self.module(node, out, str(node.target), self.body.get_submodule(str(node.target)))
        elif node.op == "call_function":
            self.call(node, out, cast(Callable[..., Any], node.target), node.args)
        elif node.op == "call_method":
            self.call(node, out, getattr(torch.Tensor, str(node.target)), node.args)
        elif node.op == "get_attr":
            self.constant(out, str(node.target))

    def module(self, node: fx.Node, out: int, name: str, module: nn.Module) -> None:
        source = self.index[cast(fx.Node, node.args[0])] if node.args else 0
        if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm) and not node.args:
            self.faults.append(f"{name} is given its input by keyword; give it by position")
        elif isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                self.faults.append(f"{name} pads with {module.padding_mode!r}; only zeros are supported")
            bias = _bias(name, module)
            padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
            geometry = (tuple(module.stride), padding, tuple(module.dilation), module.groups)
            norm = self.take_norm(node)
            last = self.only_reader(node) if norm is not None else node
            add, last = self.take_addition(node, cast(fx.Node, last))
            act = self.take_activation(node, last)
            self.steps.append(Conv(source, out, name, f"{name}.weight", bias, *geometry, norm, add, act))
        elif isinstance(module, nn.Linear):
            bias = _bias(name, module)
            self.steps.append(Linear(source, out, name, f"{name}.weight", bias, self.take_norm(node)))
        elif isinstance(module, _BatchNorm):
            self.steps.append(LoneNorm(source, out, self.norm(name, module)))
        elif isinstance(module, nn.MaxPool2d) and node.args and _is_plain(module):
            sizes = module.kernel_size, module.stride, module.padding
            self.steps.append(MaxPool(source, out, *map(_pair, sizes)))
        elif next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
            self.faults.append(f"{name} is a {type(module).__name__}, which holds weights that tasks cannot share")
        else:
            self.call(node, out, module, node.args)

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        readers = list(node.users)
        return readers[0] if len(readers) == 1 else None

    def what(self, node: fx.Node) -> object:
        """The module or function that a node calls; None for neither."""
        if node.op == "call_module":
            return self.body.get_submodule(str(node.target))
        if node.op == "call_method":
            return getattr(torch.Tensor, str(node.target))
        return node.target if node.op == "call_function" else None

    def take_norm(self, node: fx.Node) -> Norm | None:
        """The BatchNorm that alone reads a layer's output; it is then part of that layer's step."""
        reader = self.only_reader(node)
        module = None if reader is None else self.what(reader)
        if reader is None or not isinstance(module, _BatchNorm):
            return None
        self.absorbed[reader] = node
        return self.norm(str(reader.target), module)

    def take_addition(self, conv: fx.Node, last: fx.Node) -> tuple[int | None, fx.Node]:
        """The addition of an earlier value that alone reads `last`: (that value, the node that is then last).

        The addition then comes as early as the convolution, so nothing may stand between them: it could write to the
        value that is added.
        """
        reader = self.only_reader(last)
        if reader is None or self.what(reader) not in ADDITIONS or reader.kwargs or len(reader.args) != 2:
            return None, last
        if last.next is not reader or (last is not conv and conv.next is not last):
            return None, last
        if self.what(reader) in ADDITIONS_IN_PLACE and reader.args[0] is not last:  # the other's readers see the sum
            return None, last
        other = reader.args[1] if reader.args[0] is last else reader.args[0]
        if not isinstance(other, fx.Node) or other is last or other not in self.index:  # computed later, or a number
            return None, last
        self.absorbed[reader] = conv
        return self.index[other], reader

    def take_activation(self, conv: fx.Node, last: fx.Node) -> str | None:
        """The activation that alone reads `last`."""
        reader = self.only_reader(last)
        if reader is None:
            return None
        what = self.what(reader)
        act = ACTIVATIONS.get(type(what) if isinstance(what, nn.Module) else what)
        if act is not None:
            self.absorbed[reader] = conv
        return act

    def norm(self, name: str, module: _BatchNorm) -> Norm:
        if not module.track_running_stats or not module.affine:
            self.faults.append(f"{name} has no statistics or no scale of its own")
        return Norm(name, module.eps)

    def call(self, node: fx.Node, out: int, function: Callable[..., Any], args: Any) -> None:
        def ref(child: fx.Node) -> Any:
            return Ref(self.index[child])

        self.steps.append(Call(function, map_arg(args, ref), map_arg(node.kwargs, ref), out))

    def constant(self, out: int, name: str) -> None:
        holder, _, leaf = name.rpartition(".")
        value = getattr(self.body.get_submodule(holder), leaf)
        if isinstance(value, nn.Parameter):
            self.faults.append(f"{name} is a weight outside every layer, which tasks cannot share")
        self.constants[out] = name


ADDITIONS_IN_PLACE = (operator.iadd, torch.Tensor.add_)
ADDITIONS = (operator.add, torch.add, torch.Tensor.add, *ADDITIONS_IN_PLACE)
ACTIVATIONS: Mapping[object, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    torch.relu: "relu",
    F.relu: "relu",
    F.relu6: "relu6",
    torch.Tensor.relu: "relu",
    torch.Tensor.relu_: "relu",
}


def _is_plain(pool: nn.MaxPool2d) -> bool:
    return _pair(pool.dilation) == (1, 1) and not pool.ceil_mode and not pool.return_indices


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _bias(name: str, module: nn.Module) -> str | None:
    return f"{name}.bias" if "bias" in dict(module.named_parameters(recurse=False)) else None


def reads(step: Step) -> set[int]:
    """The values that a step reads."""
    if isinstance(step, Conv):
        return {step.source} if step.add is None else {step.source, step.add}
    if not isinstance(step, Call):
        return {step.source}
    found: set[int] = set()

    def note(value: Any) -> Any:
        if isinstance(value, Ref):
            found.add(value.index)
        return value

    map_aggregate((step.args, dict(step.kwargs)), note)
    return found


def _last_reads(steps: list[Step], result: int, constants: Mapping[int, str]) -> tuple[tuple[int, ...], ...]:
    """For each step the values that it is the last to read, so that their memory can go."""
    seen = {result, *constants}
    ends: list[tuple[int, ...]] = []
    for step in reversed(steps):
        new = reads(step) - seen
        seen |= new
        ends.append(tuple(sorted(new)))
    return tuple(reversed(ends))


def _reusing(steps: list[Step], last_reads: Sequence[Sequence[int]]) -> list[Step]:
    """Mark the convolutions that may write over the value they add.

    A value's memory is its own where a convolution made it and only convolutions read it: what a call is given or
    gives may be a view of something else.
    """
    made = {step.out for step in steps if isinstance(step, Conv)}
    read_by_others = {value for step in steps if not isinstance(step, Conv) for value in reads(step)}
    found: list[Step] = []
    for step, done in zip(steps, last_reads, strict=True):
        own = isinstance(step, Conv) and step.add in done and step.add in made - read_by_others
        found.append(replace(step, reuse=step.add != step.source) if own and isinstance(step, Conv) else step)
    return found
