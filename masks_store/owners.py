"""Who owns which shared weight: claims, what is free, what a lineage sees, and the pool that holds all values.

Claims are stored in the artifacts; everything else here is derived from them. A claim is coded over the positions
that its own lineage does not own, row-major (FORMAT.md §3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .artifact import Artifact
from .backbones import Backbone, decode_mask, encode_mask
from .errors import FormatError
from .manifest import MaskInfo
from .positions import chosen, positions, put
from .unit_claims import CLNP, unit_claim, unit_values

Claim = Mapping[str, Tensor]
"""Parameter name -> bool of the parameter's shape: the weights that a version took. Absent layers: none."""


def visible(backbone: Backbone, claims: Iterable[Claim]) -> dict[str, Tensor]:
    """Parameter name -> bool: the weights a lineage sees, the backbone's own and those of `claims`."""
    seen = {name: kept.clone() for name, kept in backbone.kept.items()}
    for claim in claims:
        for name, mask in claim.items():
            seen[name] |= mask
    return seen


def free_positions(backbone: Backbone, claims: Iterable[Claim]) -> dict[str, Tensor]:
    """Parameter name -> bool: the weights that nobody owns, given the claims of the whole store."""
    return {name: ~seen for name, seen in visible(backbone, claims).items()}


def overlap(claim: Claim, others: Mapping[str, Claim]) -> list[str]:
    """One fault per version and layer whose weights `claim` takes too; empty when they are disjoint."""
    faults: list[str] = []
    for version, other in others.items():
        for name in sorted(claim.keys() & other.keys()):
            shared = int((claim[name] & other[name]).sum())
            if shared:
                faults.append(f"{name}: {shared} claimed weights belong to {version}")
    return faults


def decode_claim(artifact: Artifact, backbone: Backbone, ancestors: Sequence[Claim]) -> dict[str, Tensor]:
    """The claim of an artifact; empty for one that takes no shared weights.

    Args:
        artifact: whose `mask/…` tensors are read (piggyback's are no claim); of a clnp one, its units.
        backbone: gives the shapes and the weights that are its own.
        ancestors: the claims of the artifact's lineage without itself.

    Raises:
        FormatError: an unknown layer, or a mask of another length; every fault at once.
    """
    if artifact.manifest.method == CLNP:
        return unit_claim(artifact, backbone, ancestors)
    layers = [name.removeprefix("mask/") for name in artifact.manifest.claims]
    return claim_over(artifact, _visible_in(backbone, ancestors, layers))


def claim_over(artifact: Artifact, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`decode_claim` of an artifact that claims weights, not units, given what its lineage sees.

    Args:
        artifact: whose `mask/…` tensors are read.
        seen: parameter name -> bool of its shape, at least for the layers that there are masks for: the weights that
            the backbone or an ancestor owns.

    Raises:
        FormatError: as for `decode_claim`.
    """
    claim: dict[str, Tensor] = {}
    faults: list[str] = []
    coded = {name.removeprefix("mask/"): artifact.tensors[name] for name in artifact.manifest.claims}
    for name, payload in coded.items():
        if name not in seen:
            faults.append(f"mask/{name}: the backbone has no such layer")
            continue
        try:
            where = positions(~seen[name])
            bits = decode_mask(payload, artifact.manifest.masks[f"mask/{name}"], len(where), f"mask/{name}")
        except FormatError as error:
            faults += error.faults
            continue
        claim[name] = torch.zeros_like(seen[name])
        claim[name].view(-1)[where[positions(bits)]] = True
    if faults:
        raise FormatError(f"{artifact.version}: its claim does not fit its lineage", faults)
    return claim


def encode_claim(
    claim: Claim, backbone: Backbone, ancestors: Sequence[Claim]
) -> tuple[dict[str, Tensor], dict[str, MaskInfo]]:
    """Code a claim over the positions that its lineage does not own.

    Returns:
        The tensors `mask/<param>` (u8 [bytes]) and their manifest entries, by tensor name.

    Raises:
        ValueError: the claim takes a weight that its own lineage owns.
    """
    tensors: dict[str, Tensor] = {}
    masks: dict[str, MaskInfo] = {}
    seen = _visible_in(backbone, ancestors, claim)
    for name, mask in claim.items():
        if bool((mask & seen[name]).any()):
            raise ValueError(f"{name}: the claim takes weights that its lineage owns")
        tensors[f"mask/{name}"], masks[f"mask/{name}"] = encode_mask(mask.reshape(-1)[positions(~seen[name])])
    return tensors, masks


def claimed_values(artifact: Artifact, backbone: Backbone) -> dict[str, Tensor]:
    """Parameter name -> float32 [ones], row-major over the claim: the values that a version gave its weights."""
    if artifact.manifest.method == CLNP:
        return unit_values(artifact, backbone)
    return {name: values.to(torch.float32) for name, values in artifact.of_kind("value").items()}


def _visible_in(backbone: Backbone, claims: Sequence[Claim], names: Iterable[str]) -> dict[str, Tensor]:
    """`visible`, for the named layers only."""
    seen = {name: backbone.kept[name].clone() for name in names if name in backbone.kept}
    for claim in claims:
        for name in claim.keys() & seen.keys():
            seen[name] |= claim[name]
    return seen


class Pool:
    """All shared weights: the backbone's own and every claim's values; only ever the source of masked copies.

    Writing a claim touches no position of another, so no view that is loaded changes.
    """

    def __init__(self, backbone: Backbone, device: torch.device | str = "cpu") -> None:
        self._weights = {name: backbone.tensors[name].to(device, copy=True) for name in backbone.kept}

    def write(self, claim: Claim, values: Mapping[str, Tensor]) -> None:
        """Give the claimed weights their values.

        Args:
            claim: parameter name -> bool of its shape.
            values: parameter name -> float32 [claimed weights], row-major.
        """
        for name, mask in claim.items():
            put(self._weights[name], positions(mask), values[name])

    def masked(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter name -> float32 weights where seen, +0.0 elsewhere: new tensors, never a product with a mask.

        A product would leave -0.0 under a negative and NaN under a non-finite value of somebody else's claim.
        """
        return {name: self._masked(self._weights[name], mask) for name, mask in seen.items()}

    @staticmethod
    def _masked(weights: Tensor, mask: Tensor) -> Tensor:
        if weights.device.type == "cpu":
            return chosen(weights, mask)
        return torch.where(mask.to(weights.device), weights, weights.new_zeros(()))
