"""Convolutions of small maps, and those that oneDNN breaks on, as one matrix product, in training on a CPU.

Where a layer has more weights than its maps have positions (the late layers of a network that sees small pictures),
oneDNN spends most of a training step on bringing weights and their gradients into its own order and back. There the
same sums are one product of the maps' patches [N·L, k·k·C] and the weights [k·k·C, O], as they lie in channels_last
("im2col": Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006,
section 2.2). `benchmarks.small_maps` measures both.

The same product stands in for what oneDNN computes out of bounds (`corrupts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

POSITIONS_PER_CHANNEL = 4
"""Of the output, all maps of the batch together: the most at which the product is the faster one."""
AVX2_FLOATS = 8


@final
class SmallMaps(TorchFunctionMode):
    """Within this context every convolution of small maps, and every one that `corrupts`, is a matrix product.

    Values and gradients differ by rounding only. A convolution with groups, dilation or padding by name is left alone.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of `func`."""
        if func is F.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            input, weight, bias, stride, padding, dilation, groups = args
            if (
                groups == 1
                and dilation == (1, 1)
                and not isinstance(padding, str)
                and (corrupts(weight, stride) or is_small(input, weight, stride, padding))
            ):
                return product(input, weight, bias, stride, padding)
        return func(*args, **(kwargs or {}))


def corrupts(weight: Tensor, stride: tuple[int, int]) -> bool:
    """Whether oneDNN may write beyond its memory for the weight's gradient, which ends the process sooner or later.

    It does on processors with AVX2 and without AVX-512, where a 1x1 kernel takes steps and reads fewer channels than an
    AVX2 register has numbers (torch 2.15.0; a ResNet narrower than any usual one).

    Args:
        weight: [O, C, k, k].
        stride: of the convolution.
    """
    return weight.shape[2:] == (1, 1) and weight.shape[1] < AVX2_FLOATS and stride != (1, 1)


def is_small(input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether the product is the faster one.

    Args:
        input: [N, C, H, W].
        weight: [O, C, k, k].
        stride, padding: of the convolution, vertical and horizontal.
    """
    count, _, *sides = input.shape
    positions = [
        (side + 2 * pad - kernel) // step + 1
        for side, kernel, step, pad in zip(sides, weight.shape[2:], stride, padding, strict=True)
    ]
    return count * positions[0] * positions[1] <= POSITIONS_PER_CHANNEL * len(weight)


def product(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """`F.conv2d(input, weight, bias, stride, padding)` by one matrix product.

    Args:
        input: float [N, C, H, W].
        weight: float [O, C, k, l], best in channels_last.
        bias: [O], or none.
        stride, padding: vertical and horizontal.

    Returns:
        [N, O, H', W'] in channels_last; under autocast in its dtype.
    """
    if torch.is_autocast_enabled("cpu"):  # which would cast the product, but after the patches were copied
        input = input.to(torch.get_autocast_dtype("cpu"))
    kernel = (weight.shape[2], weight.shape[3])
    patches: Tensor = Patches.apply(input, kernel, stride, padding)  # pyright: ignore[reportAssignmentType]
    rows = weight.permute(0, 2, 3, 1).flatten(1)  # [O, k·l·C]: a view of channels_last
    return F.linear(patches, rows, bias).permute(0, 3, 1, 2)


@final
class Patches(torch.autograd.Function):
    """What each position of a convolution's output sees: [N, C, H, W] to [N, H', W', k·l·C]."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Copied once, whatever is padded included."""
        ctx.shape, ctx.kernel, ctx.stride, ctx.padding = input.shape, kernel, stride, padding
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [N, H', W', C, k, l]
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Each input's gradient is the sum over the positions that saw it, in float32 at least."""
        (gradient,) = gradients
        (count, channels, height, width), (pad_y, pad_x) = ctx.shape, ctx.padding
        _, rows, columns, _ = gradient.shape
        windows = gradient.unflatten(3, (*ctx.kernel, channels))  # [N, H', W', k, l, C]
        exact = torch.promote_types(gradient.dtype, torch.float32)
        padded = gradient.new_zeros((count, height + 2 * pad_y, width + 2 * pad_x, channels), dtype=exact)
        for y in range(ctx.kernel[0]):
            for x in range(ctx.kernel[1]):
                seen_y = slice(y, y + ctx.stride[0] * (rows - 1) + 1, ctx.stride[0])
                seen_x = slice(x, x + ctx.stride[1] * (columns - 1) + 1, ctx.stride[1])
                padded[:, seen_y, seen_x] += windows[:, :, :, y, x]
        inner = padded[:, pad_y : pad_y + height, pad_x : pad_x + width]
        return inner.permute(0, 3, 1, 2).to(gradient.dtype), None, None, None
