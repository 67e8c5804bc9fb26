"""Who owns which free weight, in one number per weight: derived from the claims, and small however many there are.

Claims never overlap, so one owner number per weight holds all of them: a byte a weight, two from the 256th claim on,
where a bool tensor per claim would take a byte per weight and version.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .backbones import Backbone
from .errors import OutOfCapacity
from .owners import Claim
from .positions import positions
from .takers import MOST, PIECE, Takers, number_type, numbered


class Occupancy:
    """The owner of every weight that tasks may claim.

    Args:
        backbone: gives the shapes and the weights that are its own.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._kept = backbone.kept
        self._owner = {name: torch.zeros(kept.shape, dtype=torch.uint8) for name, kept in backbone.kept.items()}
        self._numbers: dict[str, int] = {}
        self._released: list[int] = []
        self._layers: dict[str, tuple[str, ...]] = {}

    def __contains__(self, version: str) -> bool:
        return version in self._numbers

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions whose claims are in here."""
        return tuple(self._numbers)

    def overlap(self, claim: Claim) -> list[str]:
        """One fault per owner and layer whose weights `claim` takes too; empty when they are disjoint.

        Args:
            claim: parameter name -> bool of its shape.
        """
        versions = {number: version for version, number in self._numbers.items()}
        faults: list[str] = []
        for name in sorted(claim):
            where = positions(claim[name])
            owners = self._owner[name].view(-1)[where]
            owners = owners[owners != 0]  # most often empty
            for number, count in zip(*(found.tolist() for found in owners.unique(return_counts=True)), strict=True):
                faults.append(f"{name}: {count} claimed weights belong to {versions[number]}")
            kept = int(self._kept[name].view(-1)[where].sum())
            if kept:
                faults.append(f"{name}: {kept} claimed weights belong to the backbone")
        return faults

    def add(self, version: str, claim: Claim) -> None:
        """Enter a claim that overlaps with none.

        Raises:
            OutOfCapacity: more than 32,767 claims in one store.
        """
        number = self._free_number()
        self._owner = numbered(self._owner, number)
        for name, mask in claim.items():
            self._owner[name].view(-1)[positions(mask)] = number
        self._numbers[version] = number
        self._layers[version] = tuple(claim)

    def remove(self, version: str) -> None:
        """Take a claim out; its weights are free."""
        number = self._numbers.pop(version)
        for name in self._layers.pop(version):
            owner = self._owner[name]
            owner.view(-1)[positions(owner == number)] = 0
        self._released.append(number)

    def claim(self, version: str) -> dict[str, Tensor]:
        """The claim of a version: parameter name -> bool of its shape."""
        number = self._numbers[version]
        return {name: self._owner[name] == number for name in self._layers[version]}

    def takers(self, lineage: Sequence[str]) -> Takers:
        """Which version of a lineage took each weight, found in one pass; those that are not in here took nothing.

        Args:
            lineage: versions, root first.
        """
        most = len(self._numbers) + len(self._released)
        numbers = torch.zeros(most + 1, dtype=number_type(len(lineage))).numpy()
        held = {version: index for index, version in enumerate(lineage, 1) if version in self._numbers}
        for version, index in held.items():
            numbers[self._numbers[version]] = index
        layers: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for version in held for name in self._layers[version]):
            owner = self._owner[name].numpy().reshape(-1)
            taken = np.empty(owner.shape, numbers.dtype)
            for at in range(0, owner.size, PIECE):
                piece = slice(at, at + PIECE)
                np.take(numbers, owner[piece], out=taken[piece], mode="clip")  # any other mode buffers what it gives
            layers[name] = torch.from_numpy(taken).view(self._owner[name].shape)
        return Takers(len(lineage), layers)

    def free(self) -> dict[str, Tensor]:
        """Parameter name -> bool: the weights that nobody owns."""
        return {name: (owner == 0) & ~self._kept[name] for name, owner in self._owner.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> how many of its weights are free, and how many it has."""
        return {name: (int(free.sum()), free.numel()) for name, free in self.free().items()}

    def _free_number(self) -> int:
        if self._released:
            return self._released.pop()
        if len(self._numbers) >= MOST:
            raise OutOfCapacity(f"a store holds at most {MOST:,} versions that claim weights; begin another store")
        return len(self._numbers) + 1
