"""The claims of a whole store, kept up with the registry: who owns which weight now, and what is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from .artifact import Artifact
from .backbones import Backbone
from .errors import StoreCorrupt
from .occupancy import Occupancy
from .owners import Claim, decode_claim
from .registry import Registry
from .takers import Takers

FEW = 8
"""Claims that are decoded while others wait, where nobody asks for them yet."""


class Ledger:
    """Answers from the registry's claim holders as they are at the moment of the call; for several threads.

    A claim is immutable and known by its version, so each is decoded once.

    Args:
        registry: names the versions that hold claims, and their parents.
        backbone: gives the store's backbone.
        artifact: reads a version's artifact.
    """

    def __init__(
        self, registry: Registry, backbone: Callable[[], Backbone], artifact: Callable[[str], Artifact]
    ) -> None:
        self._registry = registry
        self._backbone = backbone
        self._artifact = artifact
        self._occupancy: Occupancy | None = None
        self._noted: tuple[str, Claim] | None = None  # entered once the registry is seen to have it
        self._lock = threading.Lock()

    def overlap(self, version: str, claim: Claim) -> list[str]:
        """What the claim of a version takes that others own; one fault per owner and layer."""
        with self._lock:
            occupancy = self._now()
            return [] if version in occupancy else occupancy.overlap(claim)

    def free(self) -> dict[str, Tensor]:
        """Parameter name -> bool: the weights that nobody owns."""
        with self._lock:
            return self._now().free()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> how many of its weights are free, and how many it has."""
        with self._lock:
            return self._now().counts()

    def claim(self, version: str) -> Claim | None:
        """The weights that a version took; None when it holds no claim (any more)."""
        with self._lock:
            occupancy = self._now()
            return occupancy.claim(version) if version in occupancy else None

    def takers(self, lineage: Sequence[Artifact]) -> Takers | None:
        """The claims of a lineage, root first; None where one of them is not in the store (any more)."""
        if not any(artifact.manifest.claims for artifact in lineage):
            return Takers(len(lineage), {})  # what the store holds does not matter then
        with self._lock:
            occupancy = self._now()
            if any(artifact.manifest.claims and artifact.version not in occupancy for artifact in lineage):
                return None
            return occupancy.takers([artifact.version for artifact in lineage])

    def known(self, version: str) -> Claim | None:
        """The claim of a version that has been decoded here already; None as well while others are being decoded."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._noted is not None and self._noted[0] == version:
                return self._noted[1]
            if self._occupancy is None or version not in self._occupancy:
                return None
            return self._occupancy.claim(version)
        finally:
            self._lock.release()

    def update(self, stop: Callable[[], bool]) -> None:
        """Decode what is not decoded yet, a few claims at a time, until `stop` says so: the next question need not."""
        while not stop():
            with self._lock:
                if self._catch_up(FEW)[1]:
                    return

    def note(self, version: str, claim: Claim) -> None:
        """Hand over the claim of a version that has just been registered, so that it is not decoded again."""
        with self._lock:
            if self._occupancy is None or version not in self._occupancy:
                self._noted = (version, claim)

    def _now(self) -> Occupancy:
        return self._catch_up(None)[0]

    def _catch_up(self, most: int | None) -> tuple[Occupancy, bool]:
        """Enter the claims that are missing, at most so many; whether none is missing any more."""
        held = self._occupancy.versions if self._occupancy else ()
        with self._registry.read() as transaction:
            holders = transaction.claim_holders()
            parents = transaction.parents() if set(holders) - set(held) else {}
        if self._occupancy is None:
            self._occupancy = Occupancy(self._backbone())
        for version in set(held) - set(holders):
            self._occupancy.remove(version)
        missing = [version for version in holders if version not in self._occupancy]
        for version in missing[:most]:  # ancestors before those that are built on them
            self._enter(self._occupancy, version, parents)
        return self._occupancy, most is None or len(missing) <= most

    def _enter(self, occupancy: Occupancy, version: str, parents: Mapping[str, str | None]) -> None:
        claim = self._claim_of(occupancy, version, parents)
        faults = occupancy.overlap(claim)
        if faults:
            raise StoreCorrupt(f"version {version} claims weights of others; `taskpack verify` tells more", faults)
        occupancy.add(version, claim)

    def _claim_of(self, occupancy: Occupancy, version: str, parents: Mapping[str, str | None]) -> Claim:
        if self._noted is not None and self._noted[0] == version:
            claim, self._noted = self._noted[1], None
            return claim
        lineage: list[str] = []
        parent = parents[version]
        while parent is not None:
            lineage.append(parent)
            parent = parents[parent]
        ancestors = [occupancy.claim(ancestor) for ancestor in lineage if ancestor in occupancy]
        return decode_claim(self._artifact(version), self._backbone(), ancestors)


class StoredClaims(Mapping[str, Claim]):
    """Version -> claim of a fixed list of versions; each claim is made when it is asked for.

    A bool tensor for each of many versions would take a byte per weight and version.
    """

    def __init__(self, versions: Sequence[str], claim: Callable[[str], Claim]) -> None:
        self._versions = tuple(versions)
        self._known = frozenset(versions)
        self._claim = claim

    def __getitem__(self, version: str) -> Claim:
        if version not in self._known:
            raise KeyError(version)
        return self._claim(version)

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)
