"""Which version of a lineage took each weight, in one number a weight: every claim of it at once.

Claims of one lineage never overlap, so one number per weight holds all of them, and what is asked of them (what the
lineage sees, what its weights are) takes one pass, however many versions it has. A bool tensor for each would take a
byte per weight and version, and a pass for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backbones import Backbone
from .errors import FormatError
from .owners import Claim
from .positions import chosen

Floats: TypeAlias = NDArray[np.float32]

_NOTHING: Floats = np.empty(0, np.float32)
PIECE = 1 << 17
"""Weights that are put together at a time: what is needed for a moment stays in a core's cache."""
MOST = torch.iinfo(torch.int16).max
"""Versions of a lineage: a store holds no more claims, either."""


@dataclass(frozen=True)
class Takers:
    """The claims of a lineage; a value, never changed.

    Attributes:
        count: versions in the lineage.
        layers: parameter name -> uint8 of its shape, int16 of more than 255 versions: n where the nth version took the
            weight, the root being the first, and 0 where none did. Layers of which nothing was taken may be absent.
    """

    count: int
    layers: Mapping[str, Tensor]

    @classmethod
    def of(cls, claims: Sequence[Claim]) -> Self:
        """Those of claims that do not overlap, root first."""
        found = cls(0, {})
        for claim in claims:
            found = found.then(claim)
        return found

    def then(self, claim: Claim) -> Self:
        """With one version more.

        Args:
            claim: what it took, of weights that no other did: parameter name -> bool of its shape.

        Raises:
            FormatError: more versions than numbers.
        """
        number = self.count + 1
        if number > MOST:
            raise FormatError(f"a lineage of more than {MOST:,} versions; build the task on one with fewer ancestors")
        layers = numbered(self.layers, number)  # all of them: a byte compared with 256 is silently compared with 0
        for name, mask in claim.items():
            taken = mask.to(number_type(number)) * number
            layers[name] = taken if name not in layers else taken.add_(layers[name])
        return type(self)(number, layers)

    def claims(self) -> list[Claim]:
        """One claim for each version, root first."""
        return [{name: taken == n for name, taken in self.layers.items()} for n in range(1, self.count + 1)]

    def seen(self, backbone: Backbone, count: int | None = None) -> dict[str, Tensor]:
        """`owners.visible` of the first `count` versions, by default of all.

        Returns:
            Parameter name -> bool of its shape: the backbone's own weights and theirs; never to be changed, for of
            layers that nobody took anything of they are the backbone's tensors.
        """
        found: dict[str, Tensor] = {}
        for name, kept in backbone.kept.items():
            taken = self.layers.get(name)
            if taken is None:
                found[name] = kept
            else:
                theirs = taken != 0 if count is None else (taken != 0) & (taken <= count)
                found[name] = theirs.logical_or_(kept)
        return found

    def weights(self, backbone: Backbone, values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The shared weights that the lineage owns, put together in one pass.

        Args:
            backbone: gives its own weights.
            values: of each version, root first: parameter name -> float32 [claimed weights], row-major.

        Returns:
            Parameter name -> float32 of its shape: the backbone's where it keeps them, theirs where they took them,
            +0.0 elsewhere. New tensors.
        """
        found: dict[str, Tensor] = {}
        for name, kept in backbone.kept.items():
            found[name] = chosen(backbone.tensors[name], kept)
            if name in self.layers:
                given = [own[name].numpy() if name in own else _NOTHING for own in values]
                _write(found[name].view(-1).numpy(), self.layers[name].view(-1).numpy(), given)
        return found


def numbered(layers: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The same numbers in tensors that can hold `number` too.

    Args:
        layers: parameter name -> uint8 or int16.
        number: at most 32,767.
    """
    wide = number_type(number) == torch.int16
    return {name: numbers.to(torch.int16) if wide else numbers for name, numbers in layers.items()}


def number_type(number: int) -> torch.dtype:
    """The smaller of the two types that hold a number: uint8 or int16."""
    return torch.uint8 if number <= torch.iinfo(torch.uint8).max else torch.int16


def _write(out: Floats, taken: NDArray[Any], values: Sequence[Floats]) -> None:
    """Write the taken weights of a layer.

    Args:
        out: float32 [weights].
        taken: [weights]: whose each is, as in `Takers`.
        values: of each version, float32 [its weights].
    """
    starts = [0] * len(values)
    for at in range(0, taken.size, PIECE):
        where = np.flatnonzero(taken[at : at + PIECE] != 0)
        whose = taken[at : at + PIECE].take(where)
        order = np.argsort(whose, kind="stable")  # of small whole numbers: one pass
        parts: list[Floats] = []
        for n, count in enumerate(np.bincount(whose, minlength=1).tolist()[1:]):
            parts.append(values[n][starts[n] : starts[n] + count])
            starts[n] += count
        if parts:
            out[at : at + PIECE][where.take(order)] = np.concatenate(parts)
    if starts != [len(own) for own in values]:
        raise ValueError("a version has not as many values as it took weights")
