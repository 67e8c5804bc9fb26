"""The operators that a forward calls: torch's, oneDNN's fused convolution where a weight lies as oneDNN wants it, and
what each row's own task has behind a layer (`behind.py`).

oneDNN is called by its own interface (`onednn.py`), or where that is not found by torch's private `torch.ops.mkldnn`.
`places.py` tries every layer at the start and falls back to plain weights, which `torch.nn.functional` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .behind import behind, finish
from .onednn import Laid, convolve
from .pixels import numbers_of
from .pooling import max_pool
from .program import Conv

Weight = Tensor | Laid
"""Of a convolution or a linear layer, plain, or of a convolution as oneDNN wants it."""

_FUSED: dict[str | None, tuple[str, list[float]]] = {
    None: ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0, 6]),
}
"""Activation -> oneDNN's name for it, and its bounds."""


def conv2d(x: Tensor, weight: Weight, bias: Tensor | None, step: Conv, add: Tensor | None, act: str | None) -> Tensor:
    """act(conv(x) + bias + add).

    Args:
        x: [N, C, H, W], channels last.
        weight: [O, C / groups, kH, kW], plain or as oneDNN wants it.
        bias: [O].
        step: stride, padding, dilation and groups; where it says `reuse`, the result may be written over `add`.
        add: of any shape that goes with the convolution's result.
        act: `relu`, `relu6` or None.
    """
    if isinstance(weight, Laid):
        if add is None or (add.dtype == x.dtype and add.shape == weight.order.result(x.shape)):
            return convolve(x, weight, bias, add, act, reuse=step.reuse)
        return finish(convolve(x, weight, bias, None, None), add, act)
    if weight.is_mkldnn:
        return _onednn(x, weight, bias, step, add, act)
    return finish(F.conv2d(x, weight, bias, step.stride, step.padding, step.dilation, step.groups), add, act)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, step: Conv, add: Tensor | None, act: str | None) -> Tensor:
    assert not isinstance(step.padding, str), "places.py lays such a convolution's weight plainly"
    geometry = (list(step.padding), list(step.stride), list(step.dilation), step.groups)
    if add is None or act not in (None, "relu") or add.shape != _shape(x, weight, step):
        name, bounds = _FUSED[act if add is None else None]
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, name, bounds, "")
        return y if add is None else finish(y, add, act)
    if not (step.reuse and add.is_contiguous(memory_format=torch.channels_last)):
        add = add.clone(memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise_(add, x, weight, bias, *geometry, "add", 1.0, act, [], "")


def _shape(x: Tensor, weight: Tensor, step: Conv) -> tuple[int, ...]:
    """Of the convolution's result."""
    assert not isinstance(step.padding, str)
    sizes = zip(x.shape[2:], weight.shape[2:], step.stride, step.padding, step.dilation, strict=True)
    sides = ((size + 2 * pad - far * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, far in sizes)
    return x.shape[0], weight.shape[0], *sides


@dataclass(frozen=True, slots=True)
class RowKernels:
    """Operators that do for each image of a batch what its own task has there.

    Attributes:
        taps: (x [N, C, H, W], addresses int64 [N], column, add, act) -> act(adapter(x) + shift + add), where image n's
            depthwise 3x3 and shift are the float32 [9, C] and [C] from `column` on behind the n-th address.
        scale: the same with act(x * scale + shift + add), the scale being [C] of x; x may be [N, C] too, and is lost.
        heads: (features float32 [N, F], weights int64 [N], biases int64 [N], classes int64 [N], most) -> float32
            [N, most]: the logits of image n, whose head is float32 [classes, F] and [classes] at those addresses.
    """

    taps: Callable[[Tensor, Tensor, int, Tensor | None, str | None], Tensor]
    scale: Callable[[Tensor, Tensor, int, Tensor | None, str | None], Tensor]
    heads: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operators of one engine; pass others to count, time or replace them.

    Attributes:
        conv2d, linear: shared layers.
        behind: what each row's task has behind one, task by task as a `behind.Mix` says: a CPU's way.
        max_pool: the largest of each window.
        pixels: what normalises a batch.
        rows: the same as `behind` found at an address for each image: a GPU's way; None where it has none.
    """

    conv2d: Callable[..., Tensor] = conv2d
    linear: Callable[..., Tensor] = F.linear
    behind: Callable[..., Tensor] = behind
    max_pool: Callable[..., Tensor] = max_pool
    pixels: Callable[..., Tensor] = numbers_of
    rows: RowKernels | None = None

    @property
    def ours(self) -> bool:
        """Whether all that a chain does is done by our own operators, so that a chain may do it."""
        return self.conv2d is conv2d and self.behind is behind and self.max_pool is max_pool
