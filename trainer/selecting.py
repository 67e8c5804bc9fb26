"""Learned bitmasks over fixed weights: Piggyback's real-valued masks and their straight-through gradient.

A layer that selects has one more parameter, `real_mask`, of its weight's shape; the network computes with
where(real_mask > threshold, weight, +0.0). The weight itself is never touched.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from masks_store import packable

from .phase import Phase, learning_rate

REAL_MASK = "real_mask"
START, THRESHOLD = 1e-2, 5e-3
"""What every entry of a real-valued mask begins with, and what makes it a 1 (Piggyback, METHODS §4)."""
SCOPE = 4.0
"""How many times the way from START to THRESHOLD the learning rates of a phase's steps must add up to."""


class _Select(torch.autograd.Function):
    """See `select`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, real_mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, real_mask)
        return torch.where(real_mask > THRESHOLD, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, real_mask = ctx.saved_tensors
        (grad,) = grads
        to_weight = torch.where(real_mask > THRESHOLD, grad, 0.0) if ctx.needs_input_grad[0] else None
        return to_weight, grad * weight if ctx.needs_input_grad[1] else None


def select(weight: Tensor, real_mask: Tensor) -> Tensor:
    """The weight where its mask is on, +0.0 elsewhere: chosen by position, never a product.

    Straight through ([B], METHODS §4): the binary mask's gradient dL/dW_eff * W goes to the real-valued one as it is,
    unscaled; the weight, where it trains, gets dL/dW_eff where the mask is on.

    Args:
        weight: float32, any shape.
        real_mask: float32, the same shape; on where over 5e-3.

    Returns:
        float32, the same shape.
    """
    return cast(Tensor, _Select.apply(weight, real_mask))


def add_masks(body: nn.Module) -> None:
    """Give every convolution and linear layer a mask that is on everywhere, in place."""
    for name, weight in packable(body).items():
        layer = body.get_submodule(name.removesuffix(".weight"))
        layer.register_parameter(REAL_MASK, nn.Parameter(torch.full_like(weight, START)))


def real_masks(body: nn.Module) -> dict[str, Tensor]:
    """Name of the masked weight -> its real-valued mask; empty for a body without masks."""
    masks = {name: mask for name, mask in body.named_parameters() if name.endswith(f".{REAL_MASK}")}
    return {f"{name.removesuffix(REAL_MASK)}weight": mask for name, mask in masks.items()}


def selected_weights(body: nn.Module) -> dict[str, Tensor]:
    """Name -> the weight that a masked layer computes with."""
    return {name: select(body.get_parameter(name), mask) for name, mask in real_masks(body).items()}


def shown(body: nn.Module) -> dict[str, Tensor]:
    """Name of the masked weight -> bool of its shape on the CPU: where its mask is on."""
    return {name: (mask.detach() > THRESHOLD).cpu().contiguous() for name, mask in real_masks(body).items()}


def too_few_steps(phase: Phase, steps: int) -> str | None:
    """Say so where a phase is too short, or its rate too low, for its masks to hide more than a few weights.

    A step of Adam moves an entry by about the learning rate at most, so the rates of all steps add up to how far it can
    go, all of them in one direction. (With 2.6 times the way 1 to 235 of ten million weights were hidden.)

    Args:
        phase: in which masks train.
        steps: in an epoch.
    """
    rates = [learning_rate(phase, epoch, step, steps) for epoch in range(phase.epochs) for step in range(steps)]
    reach = phase.mask_factor * sum(rates)
    if reach >= SCOPE * (START - THRESHOLD):
        return None
    return (
        f"its bitmask will hide next to nothing: {len(rates):,} steps move an entry by {reach:.2g} at most, and "
        f"{START - THRESHOLD:g} in one direction hide a weight; give more --epochs or a higher --lr"
    )
