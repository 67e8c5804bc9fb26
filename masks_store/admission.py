"""Whether an artifact may enter a store: all checks that read its bytes and its lineage, whoever else is in the store.

Nothing here changes anything. What other versions own is another question, asked under the claim generation
(`registration.py`), since only its answer can change while an artifact waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from .artifact import Artifact, fit_faults
from .backbones import Backbone
from .errors import BackboneMismatch, FormatError
from .owners import Claim, claim_over
from .probe import Prober, check_probe
from .selections import selection_over
from .takers import Takers
from .unit_claims import CLNP, lineage_faults, unit_claim
from .views import lineage_claims, task_digest, view_of

TAKES = {"packnet": "weights", CLNP: "units"}
"""Method -> what of a store its tasks take; the others take nothing."""


def check_backbone(artifact: Artifact, backbone: Backbone) -> None:
    """Check that the artifact was made for this backbone and this preprocess.

    Raises:
        BackboneMismatch: with both values of whatever differs.
    """
    manifest = artifact.manifest
    faults: list[str] = []
    if manifest.backbone != backbone.digest:
        faults.append(f"backbone: made for {manifest.backbone}, this store has {backbone.digest}")
    if manifest.preprocess != backbone.manifest.preprocess:
        faults.append(f"preprocess: made for {manifest.preprocess!r}, this store has {backbone.manifest.preprocess!r}")
    if faults:
        what = f"task {manifest.task!r} was not made for this store; train it on this store's backbone"
        raise BackboneMismatch(f"{what}: {'; '.join(faults)}", faults)


def check_capacity(artifact: Artifact, capacity: str) -> None:
    """Check that the artifact takes what the store gives: whole units, or single weights.

    Raises:
        BackboneMismatch: clnp in a store of weights, packnet in one of units.
    """
    takes = TAKES.get(artifact.manifest.method, capacity)
    if takes != capacity:
        raise BackboneMismatch(
            f"task {artifact.manifest.task!r} of method {artifact.manifest.method} takes {takes}, this store gives "
            f"{capacity}; make one with `taskpack init STORE --keep 0 --capacity {takes} …` and train it there"
        )


def check_content(
    artifact: Artifact,
    backbone: Backbone,
    ancestors: Sequence[Artifact],
    prober: Prober,
    above: Takers | None = None,
) -> Claim:
    """Check that an artifact fits its lineage and computes what it says, and return its claim.

    Args:
        artifact: read from its file; its backbone is this one.
        backbone: the store's.
        ancestors: its lineage without itself, root first.
        prober: the engine that its probe must pass on.
        above: the ancestors' claims, where they are at hand (`Store.takers_of`).

    Returns:
        Parameter name -> bool of its shape; empty where it takes no shared weights.

    Raises:
        FormatError: tensors that do not fit the backbone, a claim or a selection that does not fit its lineage, or
            another task digest than the manifest's; every fault at once.
        ProbeFailed: other logits than when it was made.
    """
    faults = [*lineage_faults(artifact, ancestors), *fit_faults(artifact, backbone)]
    claim: Claim = {}
    above = Takers.of(lineage_claims(backbone, ancestors)) if above is None else above
    seen = above.seen(backbone)
    try:
        clnp = artifact.manifest.method == CLNP
        claim = unit_claim(artifact, backbone, above.claims()) if clnp else claim_over(artifact, seen)
    except FormatError as error:
        faults += [fault for fault in error.faults if fault not in faults]
    try:
        selection_over(artifact, seen)
    except FormatError as error:
        faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise FormatError(f"{artifact.version}: {len(faults)} fault(s) against backbone and lineage", faults)
    del seen  # a byte a weight, which the view needs no more
    lineage = [*ancestors, artifact]
    view = view_of(backbone, lineage, above.then(claim))
    computed = task_digest(backbone, view)
    if computed != artifact.manifest.task_digest:
        raise FormatError(
            f"{artifact.version}: its manifest says task digest {artifact.manifest.task_digest}, its tensors give "
            f"{computed}; the file was altered after training: export it again"
        )
    check_probe(backbone, lineage, view, prober)
    return claim
