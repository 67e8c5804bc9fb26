"""Which of the weights that its lineage owns a version hides from itself: learned bitmasks that take nothing.

Piggyback (`mask/…`, over every position) and `packnet --pick` (`pick/…`, over the positions that the lineage sees).
A selection never enters the claims: whoever has one neither takes free weights nor gives any back when it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .artifact import Artifact
from .backbones import Backbone, decode_mask, encode_mask
from .errors import FormatError
from .manifest import MaskInfo
from .owners import Claim, visible
from .positions import positions, put

Selection = Mapping[str, Tensor]
"""Parameter name -> bool of the parameter's shape: False where a weight is hidden. Absent layers: nothing is.

What the lineage does not own is +0.0 for its versions anyway: False in a piggyback mask, True in a pick, which says
nothing of it, so that the version's own claim stays in sight.
"""


def decode_selection(artifact: Artifact, backbone: Backbone, claims: Sequence[Claim]) -> dict[str, Tensor]:
    """The selection of an artifact; empty for one that hides nothing.

    Args:
        artifact: whose `mask/…` (piggyback) or `pick/…` tensors are read.
        backbone: gives the shapes and the weights that are its own.
        claims: those of the artifact's lineage without itself.

    Raises:
        FormatError: an unknown layer, a mask of another length, or one that chooses weights that the lineage does
            not own; every fault at once.
    """
    return selection_over(artifact, visible(backbone, claims)) if artifact.manifest.selections else {}


def selection_over(artifact: Artifact, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`decode_selection`, given what the artifact's lineage sees without it.

    Args:
        artifact: whose `mask/…` (piggyback) or `pick/…` tensors are read.
        seen: parameter name -> bool of its shape, for every layer: the weights that the backbone or an ancestor owns.

    Raises:
        FormatError: as for `decode_selection`.
    """
    found: dict[str, Tensor] = {}
    faults: list[str] = []
    coded = artifact.manifest.selections
    for name, info in coded.items():
        kind, _, parameter = name.partition("/")
        if parameter not in seen:
            faults.append(f"{name}: the backbone has no such layer")
            continue
        owned = seen[parameter]
        room = owned.numel() if kind == "mask" else int(torch.count_nonzero(owned))
        try:
            bits = decode_mask(artifact.tensors[name], info, room, name)
        except FormatError as error:
            faults += error.faults
            continue
        if kind == "pick":
            found[parameter] = torch.ones_like(owned)
            put(found[parameter], positions(owned), bits)
            continue
        found[parameter] = bits.reshape(owned.shape)
        outside = int((found[parameter] & ~owned).sum())
        faults += [f"{name}: {outside} chosen weights do not belong to what it is built on"] if outside else []
    if faults:
        raise FormatError(f"{artifact.version}: its selection does not fit its lineage", faults)
    return found


def encode_selection(
    kind: Literal["mask", "pick"], selection: Selection, backbone: Backbone, claims: Sequence[Claim]
) -> tuple[dict[str, Tensor], dict[str, MaskInfo]]:
    """Code a selection; what it says of weights that the lineage does not own is left out.

    Args:
        kind: `mask`: over all positions, 0 where the lineage owns nothing; `pick`: over the positions that it sees,
            and only layers in which something is hidden.
        selection: parameter name -> bool of its shape.
        backbone: gives the weights that are its own.
        claims: those of the lineage without the new version.

    Returns:
        The tensors `<kind>/<param>` (u8 [bytes]) and their manifest entries, by tensor name.
    """
    tensors: dict[str, Tensor] = {}
    masks: dict[str, MaskInfo] = {}
    seen = visible(backbone, claims)
    for name, shown in selection.items():
        bits = (shown & seen[name]).reshape(-1) if kind == "mask" else shown[seen[name]]
        if kind == "mask" or not bool(bits.all()):
            tensors[f"{kind}/{name}"], masks[f"{kind}/{name}"] = encode_mask(bits)
    return tensors, masks
