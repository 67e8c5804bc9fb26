"""Smaller sources cut out of larger ones: some of the classes, or few training pictures of each."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

SPLITS = ("train", "val", "test")


def classes_of(source: Path) -> list[str]:
    """The classes' names, in the order of their labels."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            return [str(name) for name in file["class_names"]]
    with zipfile.ZipFile(source) as archive:
        return sorted({parts[2] for parts in _parts(archive).values()})


def subset(source: Path, out: Path, classes: Sequence[str] | None = None, *, per_class: int | None = None) -> Path:
    """Write a smaller source; what is there already is left as it is.

    Args:
        source: a `.zip` of `<set>/<split>/<class>/<file>`, or an `.npz` of pixels or of JPEG bytes.
        out: of the same kind.
        classes: that stay; None: all.
        per_class: so many training pictures of each stay, drawn with seed 0; None: all. Others than `train` stay whole.

    Returns:
        `out`.
    """
    if out.exists():
        return out
    temporary = out.with_name(f".{out.name}")
    write = _subset_npz if source.suffix == ".npz" else _subset_zip
    write(source, temporary, list(classes if classes is not None else classes_of(source)), per_class)
    temporary.replace(out)
    return out


def _parts(archive: zipfile.ZipFile) -> dict[str, tuple[str, ...]]:
    found = {name: PurePosixPath(name).parts for name in archive.namelist() if not name.endswith("/")}
    return {name: parts for name, parts in found.items() if len(parts) == 4}


def _drawn(count: int, per_class: int | None) -> list[int]:
    """Which of `count` pictures stay, in their order."""
    order = np.random.default_rng(0).permutation(count)
    return sorted(order[:per_class].tolist())


def _subset_zip(source: Path, out: Path, classes: list[str], per_class: int | None) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(out, "w") as smaller:
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, (_, split, label, _) in sorted(_parts(archive).items()):
            if label in classes:
                groups[split, label].append(name)
        for (split, _), names in groups.items():
            for place in _drawn(len(names), per_class if split == "train" else None):
                smaller.writestr(zipfile.ZipInfo(names[place]), archive.read(names[place]))


def _subset_npz(source: Path, out: Path, classes: list[str], per_class: int | None) -> None:
    with np.load(source, allow_pickle=False) as file:
        names = [str(name) for name in file["class_names"]]
        arrays = {"class_names": np.array(classes)}
        for split in (split for split in SPLITS if f"{split}_labels" in file.files):
            labels = file[f"{split}_labels"]
            places = [np.flatnonzero(labels == names.index(name)) for name in classes]
            kept = [own[_drawn(len(own), per_class if split == "train" else None)] for own in places]
            chosen = np.concatenate(kept)
            arrays[f"{split}_labels"] = np.repeat(np.arange(len(kept)), [len(own) for own in kept])
            if f"{split}_images" in file.files:
                arrays[f"{split}_images"] = file[f"{split}_images"][chosen]
            else:
                arrays |= _scans(split, file[f"{split}_scans"], file[f"{split}_offsets"], chosen)
        if "jpeg_header" in file.files:
            arrays["jpeg_header"] = file["jpeg_header"]
    with out.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _scans(split: str, scans: np.ndarray, offsets: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The JPEG bytes of the chosen pictures."""
    parts = [scans[offsets[i] : offsets[i + 1]] for i in chosen]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return {f"{split}_scans": np.concatenate(parts), f"{split}_offsets": np.concatenate([[0], np.cumsum(lengths)])}
