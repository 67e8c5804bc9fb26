"""The network that a clnp task trains: free units beside those of its lineage, one norm that chooses per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from masks_store import UnitGraph, Units, cut, gate, norm_modules

from .network import Network
from .synced_norm import synced_batch_norm


@final
class ChoosingNorm(nn.BatchNorm2d):
    """BatchNorm whose free channels are as usual, and whose other channels stay as they are in training too.

    A free channel uses its batch's statistics in training and updates its running ones; any other is normalised by its
    running statistics, always, and these never change by a bit (METHODS §3 (c)).

    Attributes:
        free: bool [C].
        synced: whether the batch is that of all processes.
    """

    free: Tensor
    synced: bool = False

    def __init__(self, norm: nn.BatchNorm2d, free: Tensor) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.register_buffer("free", free.clone())

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        settled = self._norm(input, self.running_mean.clone(), self.running_var.clone(), fresh=False)
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        fresh = self._norm(input, mean, variance, fresh=True)  # updates both
        self.running_mean.copy_(torch.where(self.free, mean, self.running_mean))
        self.running_var.copy_(torch.where(self.free, variance, self.running_var))
        return torch.where(self.free.view(1, -1, 1, 1), fresh, settled)

    def _norm(self, x: Tensor, mean: Tensor, variance: Tensor, *, fresh: bool) -> Tensor:
        if fresh and self.synced:
            return synced_batch_norm(x, mean, variance, self.weight, self.bias, self.momentum or 0.0, self.eps)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, fresh, self.momentum or 0.0, self.eps)


@final
class UnitNetwork(Network):
    """A network that knows its units.

    Attributes:
        graph: its units.
        lineage, free: group -> bool, on the CPU: the units of earlier tasks of its lineage, and those that nobody owns.
            Units of other tasks in the store are neither: they are 0 here.
    """

    def __init__(
        self, body: nn.Module, features: int, classes: int, graph: UnitGraph, lineage: Units, free: Units
    ) -> None:
        for name, norm in norm_modules(body).items():
            parent, _, leaf = name.rpartition(".")
            assert isinstance(norm, nn.BatchNorm2d), "the networks that clnp supports have no other"
            setattr(body.get_submodule(parent), leaf, ChoosingNorm(norm, free[graph.norms[name]]))
        super().__init__(body, features, classes, trains_norm=True)
        self.graph, self.lineage, self.free = graph, lineage, free
        for i, mask in enumerate(self.seen.values()):
            self.register_buffer(f"used_{i}", mask)  # of a group; a buffer, so that a checkpoint keeps it
        with torch.no_grad():  # a head reads no unit that is not there for its task, whether a scan gates any or not
            self.head.weight.copy_(torch.where(graph.features_of(self.seen, features), self.head.weight, 0.0))

    @property
    def seen(self) -> dict[str, Tensor]:
        """Group -> the units that there are for this task."""
        return {group: self.lineage[group] | self.free[group] for group in self.graph.sizes}

    @property
    def used(self) -> dict[str, Tensor]:
        """Group -> the units that are not gated."""
        return {group: self.get_buffer(f"used_{i}").cpu() for i, group in enumerate(self.graph.sizes)}

    @property
    def new(self) -> dict[str, Tensor]:
        """Group -> the units in use that nobody owns yet."""
        return {group: mask & self.free[group] for group, mask in self.used.items()}

    @property
    def norms(self) -> dict[str, ChoosingNorm]:
        """Module name -> norm."""
        return {name: module for name, module in self.body.named_modules() if isinstance(module, ChoosingNorm)}

    def synchronise(self) -> None:
        """Let free channels use the batches of all processes in training, from here on."""
        for norm in self.norms.values():
            norm.synced = True

    @torch.no_grad()
    def use(self, used: Units, state: Mapping[str, Tensor]) -> None:
        """Gate all units but `used` to exactly 0, and let only the norms of the new ones among them be free.

        Args:
            used: group -> bool, within `seen`.
            state: the whole network's state dict that is gated.
        """
        body = {name.removeprefix("body."): tensor for name, tensor in state.items() if name.startswith("body.")}
        gated = {f"body.{name}": tensor for name, tensor in gate(self.graph, body, used).items()}
        weight = state["head.weight"]
        columns = self.graph.features_of(used, weight.shape[1]).to(weight.device)
        self.load_state_dict({**state, **gated, "head.weight": torch.where(columns, weight, 0.0)})
        for i, group in enumerate(self.graph.sizes):
            self.get_buffer(f"used_{i}").copy_(used[group])
        for name, norm in self.norms.items():
            norm.free.copy_(self.new[self.graph.norms[name]])

    def cut(self) -> CutNetwork:
        """The smaller dense network of the units in use, as it stands now: to be asked, not trained."""
        return CutNetwork(self)


@final
class CutNetwork(nn.Module):
    """What a `UnitNetwork` computes in eval mode, at the cost of the units in use; shares what is not cut."""

    def __init__(self, network: UnitNetwork) -> None:
        super().__init__()
        used, weight = network.used, network.head.weight.detach()
        columns = network.graph.features_of(used, weight.shape[1])
        self.body = network.body
        self._state = cut(network.graph, {name: t.detach() for name, t in network.body.state_dict().items()}, used)
        self._head = weight[:, columns.to(weight.device)], network.head.bias.detach().clone()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] to logits [N, classes]."""
        return F.linear(functional_call(self.body, self._state, (images,)), *self._head)
