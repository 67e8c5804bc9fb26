"""Triton kernels for what stands between convolutions: one pass over memory each, channels last.

Arithmetic is in float32 and rounded once. A kernel that takes rows finds each image's own numbers at that image's
address (`rows.py`), so that one launch serves a batch of any mix of tasks, and a recorded launch too.
"""

# Triton's language looks like Python, but its types are its own.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from masks_store import Preprocess

from ..behind import finish
from ..operators import Kernels, RowKernels
from ..program import Conv

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}
TILE = 2048  # numbers of one program
WIDE = 128  # channels of one program, at most


@triton.jit
def _activated(value, ACT: tl.constexpr):
    if ACT > 0:
        value = tl.where(value < 0.0, 0.0, value)  # NaN stays NaN
    if ACT == 2:
        value = tl.where(value > 6.0, 6.0, value)
    return value


@triton.jit
def _store(out, value, add, at, inside, ADDED: tl.constexpr, ACT: tl.constexpr):
    if ADDED:
        value += tl.load(add + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, _activated(value, ACT).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _finish(y, bias, add, rows, channels, BIASED: tl.constexpr, ADDED: tl.constexpr, ACT: tl.constexpr,
            P: tl.constexpr, K: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)[:, None]
    channel = tl.program_id(1) * K + tl.arange(0, K)[None, :]
    inside = (row < rows) & (channel < channels)
    at = row * channels + channel
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    _store(y, value, add, at, inside, ADDED, ACT)


@triton.jit
def _scale_rows(y, add, addresses, column, positions, channels, ADDED: tl.constexpr, ACT: tl.constexpr,
                P: tl.constexpr, K: tl.constexpr):  # fmt: skip
    image = tl.program_id(0)
    own = tl.load(addresses + image).to(tl.pointer_type(tl.float32)) + column
    position = tl.program_id(1) * P + tl.arange(0, P)[:, None]
    channel = tl.program_id(2) * K + tl.arange(0, K)
    known = channel < channels
    scale = tl.load(own + channel, mask=known, other=0.0)
    shift = tl.load(own + channels + channel, mask=known, other=0.0)
    inside = (position < positions) & known[None, :]
    at = image.to(tl.int64) * positions * channels + position * channels + channel[None, :]
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    _store(y, value, add, at, inside, ADDED, ACT)


@triton.jit
def _taps_rows(out, x, add, addresses, column, height, width, channels, ADDED: tl.constexpr, ACT: tl.constexpr,
               P: tl.constexpr, K: tl.constexpr):  # fmt: skip
    image = tl.program_id(0)
    own = tl.load(addresses + image).to(tl.pointer_type(tl.float32)) + column
    position = tl.program_id(1) * P + tl.arange(0, P)[:, None]
    channel = tl.program_id(2) * K + tl.arange(0, K)
    known = channel < channels
    h, w = position // width, position % width
    inside = (position < height * width) & known[None, :]
    first = image.to(tl.int64) * height * width * channels
    value = tl.zeros((P, K), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            there_h, there_w = h + (i - 1), w + (j - 1)
            there = (there_h >= 0) & (there_h < height) & (there_w >= 0) & (there_w < width) & known[None, :]
            from_ = first + (there_h * width + there_w) * channels + channel[None, :]
            number = tl.load(x + from_, mask=there, other=0.0).to(tl.float32)
            tap = tl.load(own + (3 * i + j) * channels + channel, mask=known, other=0.0)
            value += number * tap[None, :]
    value += tl.load(own + 9 * channels + channel, mask=known, other=0.0)[None, :]
    at = first + position * channels + channel[None, :]
    _store(out, value, add, at, inside, ADDED, ACT)


@triton.jit
def _heads(out, features, weights, biases, classes, width, most, C: tl.constexpr, F: tl.constexpr):
    image = tl.program_id(0)
    count = tl.load(classes + image)
    weight = tl.load(weights + image).to(tl.pointer_type(tl.float32))
    bias = tl.load(biases + image).to(tl.pointer_type(tl.float32))
    label = tl.program_id(1) * C + tl.arange(0, C)
    value = tl.load(bias + label, mask=label < count, other=0.0)
    for start in range(0, width, F):
        at = start + tl.arange(0, F)
        number = tl.load(features + image * width + at, mask=at < width, other=0.0)
        both = (label < count)[:, None] & (at < width)[None, :]
        part = tl.load(weight + label[:, None] * width + at[None, :], mask=both, other=0.0)
        value += tl.sum(part * number[None, :], axis=1)
    tl.store(out + image * most + label, value, mask=label < count)


@triton.jit
def _pixels(out, pixels, mean0, mean1, mean2, std0, std1, std2, count, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    colour = at % 3
    mean = tl.where(colour == 0, mean0, tl.where(colour == 1, mean1, mean2))
    std = tl.where(colour == 0, std0, tl.where(colour == 1, std1, std2))
    value = tl.load(pixels + at, mask=at < count, other=0).to(tl.float32)
    value = tl.math.div_rn(tl.math.div_rn(value, 255.0) - mean, std)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < count)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, step: Conv, add: Tensor | None, act: str | None) -> Tensor:
    """`operators.conv2d` with bias, addition and activation in one pass."""
    y = _channels_last(F.conv2d(x, weight, None, step.stride, step.padding, step.dilation, step.groups))
    if add is not None and add.shape != y.shape:
        return finish(y if bias is None else y + bias.view(1, -1, 1, 1), add, act)
    if bias is None and add is None and act is None:
        return y
    rows, channels = y.numel() // y.shape[1], y.shape[1]
    p, k = _tile(channels)
    grid = (triton.cdiv(rows, p), triton.cdiv(channels, k))
    biased, added = y if bias is None else bias, y if add is None else _channels_last(add)
    _finish[grid](
        y, biased, added, rows, channels,
        BIASED=bias is not None, ADDED=add is not None, ACT=ACTIVATIONS[act], P=p, K=k,
    )  # fmt: skip
    return y


def scale_rows(y: Tensor, addresses: Tensor, column: int, add: Tensor | None, act: str | None) -> Tensor:
    """`RowKernels.scale`, in y's memory."""
    if y.dim() == 2:
        return scale_rows(y[:, :, None, None], addresses, column, add, act)[:, :, 0, 0]
    if add is not None and add.shape != y.shape:
        return finish(scale_rows(y, addresses, column, None, None), add, act)
    y = _channels_last(y)
    n, channels, positions = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    p, k = _tile(channels)
    grid = (n, triton.cdiv(positions, p), triton.cdiv(channels, k))
    added = y if add is None else _channels_last(add)
    _scale_rows[grid](
        y, added, addresses, column, positions, channels, ADDED=add is not None, ACT=ACTIVATIONS[act], P=p, K=k
    )  # fmt: skip
    return y


def taps_rows(x: Tensor, addresses: Tensor, column: int, add: Tensor | None, act: str | None) -> Tensor:
    """`RowKernels.taps`."""
    if add is not None and add.shape != x.shape:
        return finish(taps_rows(x, addresses, column, None, None), add, act)
    x = _channels_last(x)
    out = torch.empty_like(x)
    n, channels, height, width = x.shape
    p, k = _tile(channels)
    grid = (n, triton.cdiv(height * width, p), triton.cdiv(channels, k))
    added = x if add is None else _channels_last(add)
    _taps_rows[grid](
        out, x, added, addresses, column, height, width, channels,
        ADDED=add is not None, ACT=ACTIVATIONS[act], P=p, K=k,
    )  # fmt: skip
    return out


def heads_rows(features: Tensor, weights: Tensor, biases: Tensor, classes: Tensor, most: int) -> Tensor:
    """`RowKernels.heads`."""
    n, width = features.shape
    out = torch.zeros((n, most), device=features.device)
    _heads[(n, triton.cdiv(most, 16))](
        out, features.contiguous(), weights, biases, classes, width, most, C=16, F=min(512, _power(width))
    )  # fmt: skip
    return out


def normalised(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """`Kernels.pixels`: `masks_store.normalise` in one pass."""
    n, height, width, _ = pixels.shape
    out = torch.empty((n, height, width, 3), dtype=dtype, device=pixels.device)
    _pixels[(triton.cdiv(out.numel(), TILE),)](
        out, pixels, *preprocess.mean, *preprocess.std, out.numel(), B=TILE
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)  # [N, 3, H, W], channels last in memory


KERNELS = Kernels(conv2d=conv2d, pixels=normalised, rows=RowKernels(taps=taps_rows, scale=scale_rows, heads=heads_rows))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _tile(channels: int) -> tuple[int, int]:
    """(positions, channels) of one program."""
    k = min(WIDE, _power(channels))
    return max(1, min(64, TILE // k)), k
