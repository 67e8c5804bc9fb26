"""The artifacts that a replica reads, and what it keeps of them in host memory, as coded, within a number of bytes."""

from __future__ import annotations

from dataclasses import replace

from masks_store import Artifact, Recent, Store, read_artifact, reread_artifact

KEPT_KINDS = ("norm/", "bias/", "adapter/", "head.")


class HostArtifacts:
    """See the module. Every method may be called from any thread.

    Args:
        store: where they lie.
        limit: bytes.

    Attributes:
        reads: files read so far, each of which leaves freed memory behind.
    """

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._kept: Recent[Artifact] = Recent(limit)
        self._sound: set[str] = set()  # versions whose files were found sound here: their bytes cannot change
        self.reads = 0

    def get(self, version: str) -> Artifact:
        """What is needed again of a version's artifact (`keep`); its file is read where that is not at hand.

        Raises:
            StoreCorrupt, FormatError: as `read`.
        """
        found = self._kept.get(version)
        return self.keep(self.whole(version)) if found is None else found

    def whole(self, version: str) -> Artifact:
        """A version's whole artifact, its claim's values too, from its file; checked once, only its digest afterwards.

        Raises:
            StoreCorrupt, FormatError: as `read`.
        """
        return self._reread(version) if version in self._sound else self.read(version)

    def read(self, version: str) -> Artifact:
        """A version's whole artifact, read and checked anew.

        Raises:
            NotFound: the store never had it.
            StoreCorrupt, FormatError: its file is damaged.
        """
        self.reads += 1
        artifact = read_artifact(self._store.artifact_bytes(version), version)
        self._sound.add(version)
        return artifact

    def _reread(self, version: str) -> Artifact:
        """`read`, but only its digest is checked: what it says was found sound here."""
        self.reads += 1
        return reread_artifact(self._store.artifact_bytes(version), version)

    def keep(self, artifact: Artifact) -> Artifact:
        """Keep what is needed again of an artifact: not its claim, which is in the pool, nor its probe."""
        selections = artifact.manifest.selections
        tensors = {n: t.clone() for n, t in artifact.tensors.items() if n.startswith(KEPT_KINDS) or n in selections}
        small = replace(artifact, tensors=tensors)
        self._kept.put(artifact.version, small, sum(t.nbytes for t in tensors.values()))
        return small

    def drop(self, version: str) -> None:
        """Keep nothing of a version any more."""
        self._kept.drop(version)

    def forget(self, version: str) -> None:
        """A version is gone: nor is it known any more whether its file was sound."""
        self._kept.drop(version)
        self._sound.discard(version)
