"""The network that a run trains: its own copy of the shared body, as the task's base sees it, and the task's head."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from masks_store import norm_modules

from .selecting import selected_weights
from .small_maps import SmallMaps
from .synced_norm import SyncedNorm


class Network(nn.Module):
    """Body and head; parameters are named `body.<the backbone's name>` and `head.weight`, `head.bias`.

    Layers of the body that select have `body.<layer>.real_mask` too (`selecting.py`).

    Attributes:
        trains_norm: whether BatchNorm may use and update batch statistics. Where not, eval mode is asserted again
            after every `train()`: neither `requires_grad=False` nor `affine=False` stops running statistics, and
            `train()` would undo an `eval()` (METHODS §0.2).
    """

    def __init__(self, body: nn.Module, features: int, classes: int, *, trains_norm: bool) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, classes)
        self.trains_norm = trains_norm

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] to logits [N, classes]."""
        with SmallMaps() if images.device.type == "cpu" else nullcontext():
            selected = selected_weights(self.body)  # in place of the weights, which stay as they are
            return self.head(functional_call(self.body, selected, (images,)) if selected else self.body(images))

    def synchronise(self) -> None:
        """Let BatchNorm use the batches of all processes in training, from here on."""
        for name, norm in norm_modules(self.body).items():
            parent, _, leaf = name.rpartition(".")
            assert isinstance(norm, nn.BatchNorm2d), "the networks that are supported have no other"
            setattr(self.body.get_submodule(parent), leaf, SyncedNorm(norm))

    def train(self, mode: bool = True) -> Network:
        """As torch's, but frozen norms stay in eval mode."""
        super().train(mode)
        if not self.trains_norm:
            for norm in norm_modules(self.body).values():
                norm.eval()
        return self


def memory_format(network: nn.Module) -> torch.memory_format:
    """How a network's pictures should lie: channels_last for convolutions, the faster on CPU and GPU for all measured.

    One without any, whose first layer reads pixels in one row, would only have to put them back.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
    return torch.channels_last if convolves else torch.contiguous_format
