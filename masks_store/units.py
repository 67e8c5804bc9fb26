"""The units of a network: which neurons and filters are one unit, which layers make them, and which layers read them.

A unit is a neuron of a linear layer or a filter of a convolution. Where a network adds (residual connections), the
units on both sides are the same ones, so units come in groups: a stage's residual stream is one group over the stem or
the shortcut's convolution, every block's last convolution, their norms and all readers; inner channels are groups of
their own (METHODS §3 (a)). Found by tracing the forward, for MLPs, plain convolutional networks, VGG(_bn), and ResNets
of basic blocks or bottlenecks; what mixes channels in any other way is refused by name.

Departure from METHODS §3 (a), which takes the groups from torch-pruning's dependency graph: they come from a walk of
our own over the `torch.fx` trace. The groups alone would not do. The scan runs the same trace to hear what stands
behind each ReLU, a claim needs to know what every layer reads and how many inputs a flattened unit has there, and an
operation that is not on the short list here has to be refused, not followed by a general rule. All of that is one
pass over the nodes; it needs a body on the meta device and no further package.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from .errors import InvalidInput

Units = Mapping[str, Tensor]
"""Group -> bool [its units]."""

SUPPORTED = "mlp-H1-H2…, widecnn, tinyresnet, and torchvision's VGG and ResNet (no grouped convolutions)"
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (F.relu, torch.relu, "relu", "relu_")
_KEEP = (torch.flatten, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, "mean", "flatten")
_KEEPING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity, nn.Flatten)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        group: the units that its output channels are.
        reads: the group that its inputs are; None for the picture, all of whose channels or pixels are always used.
        spread: inputs per unit that it reads: 1, or the positions of a flattened map (unit-major).
        norm: the BatchNorm right behind it.
    """

    group: str
    reads: str | None
    spread: int
    norm: str | None


@dataclass(frozen=True)
class UnitGraph:
    """A network's units.

    Attributes:
        layers: module name -> layer, in the network's order.
        sizes: group -> number of units; a group is named for the first of its layers.
        norms: BatchNorm module name -> the group that its channels are.
        relus: name of a node of `trace` whose output is post-ReLU -> its group; every group has at least one.
        features: the group that the head reads.
        trace: the body's forward.
    """

    layers: Mapping[str, Layer]
    sizes: Mapping[str, int]
    norms: Mapping[str, str]
    relus: Mapping[str, str]
    features: str
    trace: fx.Graph

    def rows(self, layer: str, units: Units) -> Tensor:
        """Which output channels of a layer are among `units`; bool [out]."""
        return units[self.layers[layer].group]

    def columns(self, layer: str, units: Units, inputs: int) -> Tensor:
        """Which of a layer's `inputs` come from `units` or from the picture; bool [inputs]."""
        reads, spread = self.layers[layer].reads, self.layers[layer].spread
        return torch.ones(inputs, dtype=torch.bool) if reads is None else units[reads].repeat_interleave(spread)

    def features_of(self, units: Units, features: int) -> Tensor:
        """Which of the head's `features` come from `units`; bool [features]."""
        return units[self.features].repeat_interleave(features // self.sizes[self.features])


def unit_graph(body: nn.Module, arch: str) -> UnitGraph:
    """Find the units of a body.

    Args:
        body: without a head; it may be on the meta device.
        arch: its name, for messages.

    Raises:
        InvalidInput: a network that CLNP's rules do not cover; names every operation that is not.
    """
    try:
        trace = fx.Tracer().trace(body)
    except (TraceError, TypeError, ValueError) as error:
        raise InvalidInput(f"clnp does not support {arch}: its forward cannot be traced ({error})") from error
    return _Walk(body).graph(trace, arch)


class _Walk:
    """One pass over the traced forward. A value's channels are known by the module that first made them."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self.made: dict[fx.Node, str | None] = {}  # value -> the layer that made its channels; None: the picture
        self.same: dict[str, str] = {}  # layer -> an earlier one whose units its own are, or itself
        self.reads: dict[str, str | None] = {}
        self.behind: dict[str, str] = {}  # layer -> the BatchNorm right behind it
        self.norms: dict[str, str] = {}
        self.relus: dict[str, str] = {}
        self.faults: list[str] = []

    def graph(self, trace: fx.Graph, arch: str) -> UnitGraph:
        result: str | None = None
        for node in trace.nodes:
            if node.op == "output":
                result = self.made[cast(fx.Node, node.args[0])]
            elif node.op == "placeholder":
                self.made[node] = None
            else:
                self.made[node] = self.step(node)
        relus = {name: self.root(layer) for name, layer in self.relus.items()}
        for layer in self.same:
            if self.root(layer) == layer and layer not in relus.values():
                self.faults.append(f"{layer}: no ReLU follows, so its units have no activity")
        if self.faults or result is None:
            shown = "; ".join(dict.fromkeys(self.faults[:5])) or "it has no layer"
            raise InvalidInput(f"clnp does not support {arch}: {shown}. It supports {SUPPORTED}", self.faults)
        sizes = {layer: self.module(layer).weight.shape[0] for layer in self.same if self.root(layer) == layer}
        return UnitGraph(
            layers={layer: self.layer(layer, sizes) for layer in self.same},
            sizes=sizes,
            norms={norm: self.root(layer) for norm, layer in self.norms.items()},
            relus=relus,
            features=self.root(result),
            trace=trace,
        )

    def layer(self, name: str, sizes: Mapping[str, int]) -> Layer:
        source = self.reads[name]
        group = None if source is None else self.root(source)
        spread = 1 if group is None else self.module(name).weight.shape[1] // sizes[group]
        return Layer(self.root(name), group, spread, self.behind.get(name))

    def module(self, name: str) -> nn.Conv2d | nn.Linear:
        return cast(nn.Conv2d | nn.Linear, self.body.get_submodule(name))

    def root(self, layer: str) -> str:
        while self.same[layer] != layer:
            layer = self.same[layer]
        return layer

    def step(self, node: fx.Node) -> str | None:
        """What made the channels of a node's value."""
        inputs = [self.made[child] for child in node.all_input_nodes]
        if node.op == "call_module":
            return self.call_module(node, str(node.target), inputs)
        known: Any = node.target
        if node.op in ("call_function", "call_method") and inputs:
            if inputs == [None]:  # whatever is done to the picture, all of it counts as used
                return None
            if known in _ADD and len(inputs) == 2 and None not in inputs:
                return self.join(cast(str, inputs[0]), cast(str, inputs[1]))
            if known in _RELU and inputs[0] is not None:
                self.relus[node.name] = inputs[0]
                return inputs[0]
            if known in _KEEP and len(inputs) == 1:
                return inputs[0]
        name = known if isinstance(known, str) else getattr(known, "__name__", str(known))
        self.faults.append(f"{node.name}: units cannot be followed through {name!r}")
        return inputs[0] if inputs else None

    def call_module(self, node: fx.Node, name: str, inputs: list[str | None]) -> str | None:
        module = self.body.get_submodule(name)
        source = inputs[0]
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if isinstance(module, nn.Conv2d) and module.groups != 1:
                self.faults.append(f"{name}: a convolution of {module.groups} groups")
            self.same[name], self.reads[name] = name, source
            return name
        if isinstance(module, _BatchNorm) and source is not None:
            self.norms[name] = source
            before = node.all_input_nodes[0]
            if before.op == "call_module" and str(before.target) in self.same:
                self.behind[str(before.target)] = name
        elif isinstance(module, nn.ReLU) and source is not None:
            self.relus[node.name] = source
        elif not isinstance(module, _KEEPING):
            self.faults.append(f"{name}: units cannot be followed through a {type(module).__name__}")
        return source

    def join(self, a: str, b: str) -> str:
        """The units of two values that are added are the same: the group is named for the layer that came first."""
        order = list(self.same)
        first, second = sorted((self.root(a), self.root(b)), key=order.index)
        self.same[second] = first
        return first
