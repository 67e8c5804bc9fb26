"""Networks without numbers: built without drawing any, and measured at next to no cost.

torch's own way to both, modules on the meta device, takes random initialisation and many operators through its
compiler's Python, whose import costs a server 100 MB and more than a second.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

_RANDOM = frozenset({"normal_", "uniform_"})
_COMPILER = "torch._dynamo.utils"


@dataclass(frozen=True)
class Shapes:
    """What a body's layers read and what it gives, for one picture.

    Attributes:
        inputs: name of a convolution or linear layer -> shape of what it reads: (C, H, W), or (F,).
        features: length of the feature vector.
    """

    inputs: Mapping[str, tuple[int, ...]]
    features: int


@contextmanager
def without_numbers() -> Generator[None]:
    """Modules that are built inside are on the meta device: names and shapes alone."""
    with torch.device("meta"), _Undrawn():
        yield


def shapes_of(body: nn.Module, size: int) -> Shapes:
    """What a body's layers read and what it gives for a picture of `size` pixels; its numbers are not looked at.

    A forward in which layers give memory of the right shape, poolings look at one channel, and only what the network
    does between its modules is computed.

    Raises:
        RuntimeError: it takes no pictures of that size.
    """
    with torch.device("meta"):
        shadow = copy.deepcopy(body).to("meta").eval()
    inputs: dict[str, tuple[int, ...]] = {}
    for name, module in shadow.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            vars(module)["forward"] = partial(_given, module, inputs, name)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            vars(module)["forward"] = partial(_pooled, cast(Callable[[Tensor], Tensor], module.forward))
        elif isinstance(module, (_BatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Dropout)):
            vars(module)["forward"] = torch.positive
    with torch.no_grad():
        return Shapes(inputs, int(shadow(torch.empty(1, 3, size, size)).shape[1]))


def torchvision_models() -> ModuleType:
    """`torchvision.models`, without torch's compiler, unless that is imported already.

    torchvision imports it for one function, which its box operators call; no classifier has them. While torchvision is
    imported, another module stands in its place, which imports the compiler when that function, or any other name of
    it, is wanted.
    """
    stand_in = ModuleType(_COMPILER)

    def compiler() -> ModuleType:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]
        return import_module(_COMPILER)

    def wanted(name: str) -> Any:
        if name.startswith("__"):  # what is asked of any module, by those who look through all of them
            raise AttributeError(name)
        return getattr(compiler(), name)

    def can_compile(device: str) -> bool:
        return wanted("is_compile_supported")(device)

    vars(stand_in).update(__getattr__=wanted, is_compile_supported=can_compile)
    if "torch._dynamo" in sys.modules or sys.modules.setdefault(_COMPILER, stand_in) is not stand_in:
        return import_module("torchvision.models")
    try:
        return import_module("torchvision.models")
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


class _Undrawn(TorchFunctionMode):
    """Random initialisation leaves a tensor as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _given(layer: nn.Conv2d | nn.Linear, inputs: dict[str, tuple[int, ...]], name: str, read: Tensor) -> Tensor:
    """Memory of the shape that a layer gives; notes the shape that it reads."""
    inputs[name] = tuple(read.shape[1:])
    if isinstance(layer, nn.Linear):
        if read.shape[1] != layer.in_features:
            raise RuntimeError(f"{name} reads {layer.in_features} numbers where there are {read.shape[1]}")
        return read.new_empty(len(read), layer.out_features)
    one_channel = F.conv2d(
        read[:, :1],
        read.new_zeros(1, 1, *layer.kernel_size),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
    )
    return read.new_empty(len(read), layer.out_channels, *one_channel.shape[2:])


def _pooled(pool: Callable[[Tensor], Tensor], read: Tensor) -> Tensor:
    """Memory of the shape that a pooling gives."""
    return read.new_empty(*read.shape[:2], *pool(read[:, :1]).shape[2:])
