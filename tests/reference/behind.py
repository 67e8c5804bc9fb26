"""The slow clear twin of what a task has behind a shared layer: pixel by pixel, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Own:
    """One task's, each float32 and where it has it: bias [C], taps [C, 1, 3, 3], norm [4, C] as `NormTensors`."""

    bias: Tensor | None = None
    taps: Tensor | None = None
    norm: Tensor | None = None


def behind(y: Tensor, owns: list[Own], add: Tensor | None, act: str | None, eps: float) -> tuple[Tensor, Tensor]:
    """act(own(y[n]) + add[n]) for each row n.

    Args:
        y: [N, C, H, W].
        owns: of each row.
        add: of a shape that goes with y.
        act: `relu`, `relu6` or None.
        eps: of the norms.

    Returns:
        ([N, C, H, W] float64, as much of what was summed up, each number without its sign: what rounding goes by).
    """
    rows = [_row(x.double(), own, eps) for x, own in zip(y, owns, strict=True)]
    out, size = torch.stack([row for row, _ in rows]), torch.stack([size for _, size in rows])
    if add is not None:
        out, size = out + add.double(), size + add.double().abs()
    if act is not None:
        out = out.clamp(0.0, 6.0 if act == "relu6" else float("inf"))
    return out, size


def _row(x: Tensor, own: Own, eps: float) -> tuple[Tensor, Tensor]:
    size = x.abs()
    if own.bias is not None:
        bias = own.bias.double()[:, None, None]
        x, size = x + bias, size + bias.abs()
    if own.taps is not None:
        x, size = _depthwise(x, own.taps.double()), _depthwise(size, own.taps.double().abs())
    if own.norm is not None:
        weight, bias, mean, var = own.norm.double()[:, :, None, None]
        scale = weight / torch.sqrt(var + eps)
        x, size = (x - mean) * scale + bias, (size + mean.abs()) * scale.abs() + bias.abs()
    return x, size


def _depthwise(x: Tensor, taps: Tensor) -> Tensor:
    _, height, width = x.shape
    out = torch.zeros_like(x)
    for h in range(height):
        for w in range(width):
            for i in range(3):
                for j in range(3):
                    a, b = h + i - 1, w + j - 1
                    if 0 <= a < height and 0 <= b < width:
                        out[:, h, w] += taps[:, 0, i, j] * x[:, a, b]
    return out
