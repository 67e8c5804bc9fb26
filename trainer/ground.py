"""What a new task stands on: the backbone, the version it is built on, and the weights that nobody owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from masks_store import (
    STANDS_ON_UNITS,
    TAKES,
    Artifact,
    Backbone,
    Claim,
    InvalidInput,
    NotFound,
    Store,
    Units,
    Version,
    adapted,
    adapter_sites,
    lineage_claims,
    owned_weights,
    state_of,
    used_units,
    view_of,
    visible,
)

from .network import Network


@dataclass(frozen=True)
class Ground:
    """What a run may see and take; nothing in it changes.

    Attributes:
        backbone: the shared network.
        lineage: the artifacts that the task is built on, root first; empty for the backbone alone.
        free: parameter name -> bool of its shape: weights that no version in the store owns.
        holders: how many versions of the store, retired ones too, hold a claim.
    """

    backbone: Backbone
    lineage: tuple[Artifact, ...]
    free: Mapping[str, Tensor]
    holders: int = 0

    @property
    def parent(self) -> str | None:
        """The version that the task is built on."""
        return self.lineage[-1].version if self.lineage else None

    @property
    def empty(self) -> bool:
        """Whether the task's base holds no weights at all: a store that keeps nothing, and no parent."""
        return self.backbone.manifest.keep == 0.0 and not self.lineage

    @cached_property
    def claims(self) -> list[Claim]:
        """The lineage's claims, root first."""
        return lineage_claims(self.backbone, self.lineage)

    @cached_property
    def units(self) -> Units | None:
        """The units that the base sees; None where it is not built on clnp."""
        return used_units(self.backbone, self.lineage)

    @cached_property
    def base(self) -> Mapping[str, Tensor]:
        """The state dict of the (adapted) body as the base sees it: +0.0 wherever the lineage owns nothing."""
        return state_of(self.backbone, view_of(self.backbone, self.lineage)) if self.lineage else self.backbone.tensors

    @cached_property
    def owned(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool: the weights that the lineage owns, which a new version may select from."""
        return visible(self.backbone, self.claims)

    def lent_norm(self) -> str | None:
        """The task whose own norm the base computes with; None where that is the backbone's or the founding claim's."""
        giver = next((artifact for artifact in reversed(self.lineage) if artifact.of_kind("norm")), None)
        if giver is None or (self.backbone.manifest.keep == 0.0 and giver is self.lineage[0]):
            return None
        return giver.manifest.task

    def network(self, classes: int, *, trains_norm: bool, adapters: str | None = None, anew: bool = False) -> Network:
        """A network of its own that computes what the base computes, under a new head from torch's generator.

        Args:
            classes: length of the head.
            trains_norm: see `Network`.
            adapters: put an identity adapter behind the convolutions that the base does not adapt yet: `depthwise`, all
                with a kernel larger than 1x1, or `full`, all; None: nowhere.
            anew: see all that the lineage owns, whatever the base hides of it: for a version that chooses anew.
        """
        sites = [name.removesuffix(".adapter") for name in self.base if name.endswith(".adapter")]
        body = adapted(self.backbone.body(), sites)
        body.load_state_dict({**self.base, **(owned_weights(self.backbone, self.lineage) if anew else {})})
        if adapters is not None:
            body = adapted(body, [site for site in adapter_sites(body, full=adapters == "full") if site not in sites])
        return Network(body, self.backbone.features, classes, trains_norm=trains_norm)


def ground_for(store: Store, task: str, method: str, on: str | None) -> Ground:
    """Choose the parent, and read what stands under the new task; fine-tuning stands on the dense weights.

    Raises:
        InvalidInput: the store does not give what the method takes; or it keeps nothing and the method needs a base
            that `on` does not name.
        NotFound: `on` names no version that answers.
    """
    if method == "finetune":
        return Ground(store.dense(), (), {})
    check_takes(method, store.capacity)
    parent = choose_parent(store, task, method, on)
    lineage = store.lineage(parent.version) if parent else ()
    below = {artifact.manifest.method for artifact in lineage}
    if "clnp" in below and method not in STANDS_ON_UNITS:
        raise InvalidInput(f"{method} cannot be built on a clnp task; {', '.join(STANDS_ON_UNITS)} can")
    if method == "clnp" and below - {"clnp"}:
        raise InvalidInput(f"clnp is built on clnp tasks alone, not on {', '.join(sorted(below - {'clnp'}))}")
    return Ground(store.backbone, lineage, store.free_positions(), holders_in(store))


def holders_in(store: Store) -> int:
    """How many versions of the store, retired ones too, own shared weights."""
    claiming = set(store.claims())  # the names alone: a claim is made when it is asked for
    return sum(
        version.version in claiming and any(info.ones for info in version.manifest.claims.values())
        for version in store.versions()
    )


def check_takes(method: str, capacity: str) -> None:
    """Check that a method takes what a store gives, whole units or single weights.

    Raises:
        InvalidInput: says how to get a store for it.
    """
    takes = TAKES.get(method, capacity)
    if takes != capacity:
        others = [name for name, taken in TAKES.items() if taken == capacity]
        raise InvalidInput(
            f"{method} takes {takes}, and the tasks of this store take {capacity} (--capacity {capacity}): use "
            f"--method {' or '.join(others)}, or make a store with `taskpack init STORE --keep 0 --capacity {takes} …`"
        )


def version_fault(store: Store, task: str, version: str) -> str | None:
    """Why no version answers to that; to be told beside other faults."""
    try:
        store.resolve(task, version)
    except (InvalidInput, NotFound) as error:
        return str(error)
    return None


def base_fault(store: Store, on: str | None) -> str | None:
    """Why the base that `on` names is none; None where it is one, or nothing is named."""
    return None if on is None else version_fault(store, *_named(on))


def _named(on: str) -> tuple[str, str]:
    task, _, version = on.partition("@")
    return task, version or "stable"


def choose_parent(store: Store, task: str, method: str, on: str | None) -> Version | None:
    """The version that a task is built on.

    The one that `on` names (`TASK`, its stable version, or `TASK@VERSION`); else, for a task that is there already,
    the parent of its stable (or newest) version of the same method; else for packnet and clnp the newest version of
    the same method labelled stable, for the others the backbone.

    Raises:
        InvalidInput: the store keeps nothing and the method needs a base that `on` does not name.
        NotFound: `on` names no such version.
    """
    if on is not None:
        return store.resolve(*_named(on))
    versions = [version for version in store.versions() if version.state == "ready"]
    known = [version for version in versions if version.task == task and version.method == method]
    if known:
        old = next((version for version in known if "stable" in version.labels), known[-1])
        return next((version for version in store.versions() if version.version == old.parent), None)
    stable = [v for v in versions if v.method == method and "stable" in v.labels and v.task != task]
    if method in TAKES:
        return stable[-1] if stable else None  # in the order of their registration
    if store.backbone.manifest.keep == 0.0:
        first = " or ".join(name for name, taken in TAKES.items() if taken == store.capacity)
        names = ", ".join(sorted({version.task for version in versions})) or f"none yet: pack one with {first} first"
        raise InvalidInput(
            f"this store keeps nothing of its backbone (--keep 0), so {method} needs a task to stand on: name one with "
            f"--on TASK (there is: {names})"
        )
    return None
