"""A network of any wiring gives what the network itself gives: folded or not, in oneDNN's order or plainly, with the C
functions or without.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from service.engine.behind import behind, behind_compiled
from service.engine.compiled import Compiled
from service.engine.forward import Body, Segment, features
from service.engine.operators import Kernels
from service.engine.overlay import Frame, NormTensors
from service.engine.places import onednn_place, plain_place
from service.engine.program import Conv, Linear, trace

CHANNELS, SIDE = 8, 6
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", groups=CHANNELS),
    "grouped": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2, groups=2),
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(),
}
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": operator.add,
    "add_": lambda a, b: a.add_(b),
    "add twice": lambda a, b: torch.add(a, b, alpha=2),
    "relu": lambda a, _: F.relu(a),
    "relu_": lambda a, _: a.relu_(),
    "gate": lambda a, b: a * b.sigmoid(),
    "view": lambda a, _: a[:, :],
    "pool": lambda a, _: F.adaptive_avg_pool2d(a, 1),
    "cat": lambda a, b: torch.cat([a, b], 1)[:, 4 : 4 + CHANNELS],
}
Wiring = tuple[str, int, int]
"""What to do, and with which two values, counted from the newest."""


class Network(nn.Module):
    """[N, 3, SIDE, SIDE] to [N, CHANNELS]; the sum of its last value and of some others, averaged."""

    def __init__(self, wirings: list[Wiring], watched: list[int], seed: int) -> None:
        super().__init__()
        self.wirings, self.watched = wirings, watched
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        made = {str(i): LAYERS[kind]() for i, (kind, *_) in enumerate(wirings) if kind in LAYERS}
        self.layers = nn.ModuleDict(made)
        random = torch.Generator().manual_seed(seed)
        for tensor in (*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())):
            tensor.data = torch.empty_like(tensor).uniform_(-0.6, 0.6, generator=random)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                assert module.running_var is not None
                module.running_var.abs_()
                module.weight.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]  # [N, CHANNELS, SIDE or 1, SIDE or 1] each
        for i, (kind, a, b) in enumerate(self.wirings):
            first, second = values[-1 - a % len(values)], values[-1 - b % len(values)]
            values.append(self.layers[str(i)](first) if kind in LAYERS else CALLS[kind](first, second))
        result = values[-1].mean((2, 3))
        for at in self.watched:
            result = result + values[at % len(values)].mean((2, 3))
        return result


@st.composite
def networks(draw: st.DrawFn) -> Network:
    kinds, recent = st.sampled_from([*LAYERS, *CALLS]), st.sampled_from([0, 0, 0, 1, 1, 2, 3])
    wirings = draw(st.lists(st.tuples(kinds, recent, recent), min_size=1, max_size=9))
    watched = draw(st.lists(st.integers(0, 9), max_size=2))
    return Network(wirings, watched, draw(st.integers(0, 99))).eval()


@dataclass(frozen=True)
class Served:
    """A network as the engine runs it; `chained`: its first steps in one call, where they can be."""

    network: nn.Module
    folded: bool
    onednn: bool
    library: Compiled | None
    chained: bool

    def __call__(self, images: Tensor) -> Tensor:
        program = trace(self.network)
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        norms = {
            name: NormTensors(*(tensors[f"{name}.{field}"] for field in NormTensors.__slots__))
            for name, module in self.network.named_modules()
            if isinstance(module, _BatchNorm)
        }
        layers = [step for step in program.steps if isinstance(step, Conv | Linear)]
        biases = {step.bias: tensors[step.bias] for step in layers if step.bias is not None}
        frame = Frame(program, norms, biases, {step.weight: len(tensors[step.weight]) for step in layers})
        tables, kernels = self.library is not None, Kernels()
        if not self.chained:
            kernels = Kernels(behind=behind if self.library is None else partial(behind_compiled, self.library))
            kernels = replace(kernels, max_pool=lambda x, step: F.max_pool2d(x, step.kernel, step.stride, step.padding))
        plain, own = (frame.layers(None, "fp32", folds=folds, compiled=tables) for folds in (False, self.folded))
        weights = {step.weight: self.laid(step, tensors[step.weight], own.scales.get(step.weight)) for step in layers}
        segments = [Segment(0, len(images), own)]
        return features(Body(frame, plain, {}), weights, segments, images, kernels, folded=self.folded)

    def laid(self, step: Conv | Linear, weight: Tensor, scale: Tensor | None) -> Tensor:
        if scale is not None:
            weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
        place = None
        if self.onednn and isinstance(step, Conv):
            place = onednn_place(step, weight.shape, torch.float32, (SIDE, SIDE))
        place = place or plain_place(weight.shape, torch.float32, torch.device("cpu"))
        tensor, memory = place.new()
        memory.copy_(place.arranged(weight))
        return tensor


def wired(*wirings: Wiring, watched: int = 0) -> Network:
    return Network(list(wirings), [watched], 0).eval()


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("folded", [True, False])
@example(wired(("conv", 0, 0), ("norm", 0, 0), ("add", 0, 2), ("relu", 0, 0)), 2).via("the usual block")
@example(wired(("conv", 0, 0), ("add_", 1, 0)), 2).via("the value that is added is written to, and read later")
@example(wired(("conv", 0, 0), ("relu_", 1, 0), ("add", 1, 2)), 2).via("the same between convolution and addition")
@example(wired(("pool", 0, 0), ("conv", 0, 0), ("add", 0, 2)), 2).via("the sum is larger than the convolution's result")
@example(wired(("pool", 0, 0), ("conv", 1, 0), ("add", 0, 1)), 2).via("the value that is added is smaller")
@settings(max_examples=50, deadline=None)
@given(network=networks(), rows=st.integers(1, 3))
def test_any_wiring_gives_what_the_network_gives(
    library: Compiled, folded: bool, onednn: bool, native: bool, chained: bool, network: Network, rows: int
) -> None:
    images = torch.rand((rows, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(rows))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        try:
            expected = network(images)
        except RuntimeError:  # shapes that do not go together
            assume(False)
            raise
        got = Served(network, folded, onednn, library if native else None, chained)(images)
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), network.wirings


class FirstChannel(nn.Module):
    """[N, 3, H, W] to [N, H, W], without a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def test_what_is_given_back_is_never_the_images_own_memory() -> None:
    images = torch.rand((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    first = images[:, 0].clone()
    got = Served(FirstChannel().eval(), folded=False, onednn=False, library=None, chained=True)(images)
    images.zero_()  # as the thread's next forward writes over them
    assert torch.equal(got, first)
