"""The slow clear twin of the operators that find each image's own numbers by an address: image by image, in torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

Add = Tensor | None


def numbers(address: int, column: int, *shape: int) -> Tensor:
    """The float32 numbers of that shape that lie `column` numbers behind an address."""
    count = torch.Size(shape).numel()
    raw = (ctypes.c_float * count).from_address(address + 4 * column)
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).view(shape)


def _finished(y: Tensor, add: Add, act: str | None, dtype: torch.dtype) -> Tensor:
    y = y if add is None else y + add.float()
    if act is not None:
        y = y.clamp(0.0, 6.0 if act == "relu6" else float("inf"))
    return y.to(dtype)


def taps(x: Tensor, addresses: Tensor, column: int, add: Add, act: str | None) -> Tensor:
    """`service.engine.operators.RowKernels.taps`."""
    channels, own = x.shape[1], []
    for image, address in zip(x.float().split(1), addresses.tolist(), strict=True):
        kernel = numbers(address, column, 9, channels).T.reshape(channels, 1, 3, 3)
        shift = numbers(address, column + 9 * channels, channels)
        own.append(F.conv2d(image, kernel, shift, padding=1, groups=channels))
    return _finished(torch.cat(own), add, act, x.dtype)


def scale(x: Tensor, addresses: Tensor, column: int, add: Add, act: str | None) -> Tensor:
    """`service.engine.operators.RowKernels.scale`; x is lost: it becomes NaN."""
    own: list[Tensor] = []
    for image, address in zip(x.float().split(1), addresses.tolist(), strict=True):
        factor, shift = numbers(address, column, 2, x.shape[1]).view(2, 1, -1, *(1,) * (x.dim() - 2))
        own.append(image * factor + shift)
    done = _finished(torch.cat(own), add, act, x.dtype)
    x.fill_(float("nan"))
    return done


def heads(features: Tensor, weights: Tensor, biases: Tensor, classes: Tensor, most: int) -> Tensor:
    """`service.engine.operators.RowKernels.heads`; NaN behind a task's last class."""
    out = torch.full((len(features), most), float("nan"))
    heads = zip(weights.tolist(), biases.tolist(), classes.tolist(), strict=True)
    for row, (weight, bias, count) in enumerate(heads):
        width = features.shape[1]
        out[row, :count] = numbers(weight, 0, count, width) @ features[row] + numbers(bias, 0, count)
    return out
