"""The networks that can be a backbone: built by name, head removed, and the parts that the methods speak of.

Any torchvision convolutional classifier whose last linear layer is its head, and our own (`bodies.py`).
A body maps images [N, 3, H, W] to features [N, F].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from .bodies import MLP_LIMITS, OWN_NAMES, is_own, own_body
from .errors import InvalidInput
from .shapes import torchvision_models

FAMILIES = ("resnet", "wide_resnet", "resnext", "vgg", "mobilenet_v2", "densenet", "efficientnet")
"""Prefixes of torchvision's names that are accepted: convolutional classifiers whose head is one linear layer."""


def build(arch: str, arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """The body of a network: random weights from torch's global generator, no head.

    Args:
        arch: one of our own (`bodies.py`) or a torchvision classification model of `FAMILIES`.
        arch_args: keyword arguments of the constructor, e.g. `{"width": 16}` for tinyresnet; `{"image_size": 28}` must
            be given to those that take one size only.

    Returns:
        A module in eval mode: [N, 3, H, W] float to [N, features] float.

    Raises:
        InvalidInput: unknown name, or arguments that the constructor refuses.
    """
    args = dict(arch_args or {})
    try:
        if is_own(arch):
            return own_body(arch, args).eval()
        body = whole_network(arch, **args)
    except InvalidInput:
        raise
    except Exception as error:  # a constructor raises whatever its first impossible line does: also RuntimeError, …
        raise InvalidInput(f"backbone {arch!r} does not take the arguments {args}: {error}") from error
    remove_head(body)
    return body.eval()


def whole_network(arch: str, **args: Any) -> nn.Module:
    """One of torchvision's networks of `FAMILIES`, head included.

    Raises:
        InvalidInput: another name; lists those that there are.
    """
    fault = arch_fault(arch)
    if fault:
        raise InvalidInput(fault)
    return torchvision_models().get_model(arch, **args)


def arch_fault(arch: str) -> str | None:
    """What is wrong with a network's name; None for ours and those of torchvision's `FAMILIES`."""
    if is_own(arch):
        return None
    models = torchvision_models()  # here, because importing it takes time
    names = [name for name in models.list_models(models) if name.startswith(FAMILIES)]
    if arch in names:
        return None
    limits = f" ({MLP_LIMITS})" if arch.startswith("mlp") else ""
    return f"backbone {arch!r} is not supported{limits}; choose one of: {', '.join([*OWN_NAMES, *names])}"


def remove_head(network: nn.Module) -> str:
    """Replace the last linear layer by the identity, in place; returns its name (`fc`, `classifier.6`, …)."""
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linears:
        parent, _, leaf = linears[-1].rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        return linears[-1]
    return ""


def packable(body: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> weight of every convolution and linear layer: what tasks may own."""
    return {f"{name}.weight": layer.weight for name, layer in _layers(body)}


def bias_params(body: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> bias [C] of every convolution and linear layer that has one."""
    return {f"{name}.bias": layer.bias for name, layer in _layers(body) if layer.bias is not None}


def norm_modules(body: nn.Module) -> dict[str, _BatchNorm]:
    """Module name -> BatchNorm, in the network's order."""
    return {name: module for name, module in body.named_modules() if isinstance(module, _BatchNorm)}


def adapter_sites(body: nn.Module, *, full: bool = False) -> dict[str, nn.Conv2d]:
    """Module name -> convolution that CLR puts an adapter behind ([C] §3).

    Those with a kernel larger than 1x1, depthwise ones too; with `full`, every one (CLR-Full).
    """
    convs = {name: module for name, module in body.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: conv for name, conv in convs.items() if full or max(conv.kernel_size) > 1}


def _layers(body: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    return [(name, m) for name, m in body.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def identity_adapter(channels: int) -> Tensor:
    """Depthwise 3x3 kernels [C, 1, 3, 3] that change nothing: 1 in the centre, else 0."""
    kernel = torch.zeros(channels, 1, 3, 3)
    kernel[:, 0, 1, 1] = 1.0
    return kernel


class AdaptedConv2d(nn.Conv2d):
    """A convolution with CLR's depthwise 3x3, stride 1, padding 1, no bias, right behind it ([C] §3).

    Shares the weight and bias of the convolution that it stands for; `adapter` [C, 1, 3, 3] starts as the identity.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            stride=cast(tuple[int, int], conv.stride),
            padding=cast(tuple[int, int], conv.padding),
            dilation=cast(tuple[int, int], conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=cast(Any, conv.padding_mode),
            device="meta",
        )
        self.weight = conv.weight
        self.bias = conv.bias
        self.adapter = nn.Parameter(identity_adapter(conv.out_channels).to(conv.weight.device))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, then adapt each channel: [N, in, H, W] to [N, out, H', W']."""
        return F.conv2d(super().forward(input), self.adapter, padding=1, groups=len(self.adapter))


def adapted(body: nn.Module, sites: Iterable[str]) -> nn.Module:
    """Put an adapter behind the named convolutions, in place; parameter names stay, `<site>.adapter` are added."""
    for site in sites:
        parent, _, leaf = site.rpartition(".")
        setattr(body.get_submodule(parent), leaf, AdaptedConv2d(body.get_submodule(site)))  # pyright: ignore[reportArgumentType]
    return body
