"""Smaller sources cut out of larger ones: some of the classes, or few training pictures of each."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")


def classes_of(source: Path) -> list[str]:
    """The classes' names, in the order of their labels."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            return [str(name) for name in file["class_names"]]
    with zipfile.ZipFile(source) as archive:
        return sorted({parts[2] for parts in _parts(archive).values()})


def per_class_of(source: Path, pictures: int) -> int | None:
    """How many training pictures of each class may stay so that at most `pictures` stay in all; None: every one.

    Raises:
        SystemExit: not even one of each.
    """
    sizes = _training_sizes(source)
    if sum(sizes) <= pictures:
        return None
    if len(sizes) > pictures:
        raise SystemExit(f"{source.name} has {len(sizes)} classes: {pictures} training pictures are too few")
    return max(n for n in range(1, max(sizes)) if sum(min(size, n) for size in sizes) <= pictures)


def _training_sizes(source: Path) -> list[int]:
    """Training pictures of each class that has any."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            labels: list[Any] = file["train_labels"].tolist()
    else:
        with zipfile.ZipFile(source) as archive:
            labels = [label for _, split, label, _ in _parts(archive).values() if split == "train"]
    return list(Counter(labels).values())


def subset(
    source: Path,
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    per_class: int | None = None,
    test: bool = True,
) -> Path:
    """Write a smaller source, or find the one that was written before.

    Training pictures of which another split has a copy are left out: of few pictures one copy is too many.

    Args:
        source: a `.zip` of `<set>/<split>/<class>/<file>`, or an `.npz` of pixels or of JPEG bytes.
        folder: where it goes; made where it is missing.
        classes: that stay; None: all.
        per_class: so many training pictures of each stay, drawn with seed 0; None: all. Others than `train` stay whole.
        test: whether the test split is written; training pictures of which it has a copy are left out in any case.

    Returns:
        The file; its name says what it was cut from and how.
    """
    chosen = list(classes if classes is not None else classes_of(source))
    told = json.dumps([source.name, source.stat().st_size, chosen, per_class, *([] if test else ["no test"])])
    out = folder / f"{source.stem}-{hashlib.sha256(told.encode()).hexdigest()[:12]}{source.suffix}"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{os.getpid()}-{out.name}")
        write = _subset_npz if source.suffix == ".npz" else _subset_zip
        write(source, temporary, chosen, per_class, test)
        temporary.replace(out)
    return out


def _parts(archive: zipfile.ZipFile) -> dict[str, tuple[str, ...]]:
    found = {name: PurePosixPath(name).parts for name in archive.namelist() if not name.endswith("/")}
    return {name: parts for name, parts in found.items() if len(parts) == 4}


def _drawn(count: int, per_class: int | None) -> list[int]:
    """Which of `count` pictures stay, in their order."""
    order = np.random.default_rng(0).permutation(count)
    return sorted(order[:per_class].tolist())


def _subset_zip(source: Path, out: Path, classes: list[str], per_class: int | None, test: bool) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(out, "w") as smaller:
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, (_, split, label, _) in sorted(_parts(archive).items()):
            if label in classes:
                groups[split, label].append(name)
        held_out = {archive.read(name) for (split, _), names in groups.items() if split != "train" for name in names}
        for (split, _), names in groups.items():
            for place in _drawn(len(names), per_class if split == "train" else None):
                data = archive.read(names[place])
                if (test or split != "test") and (split != "train" or data not in held_out):
                    smaller.writestr(zipfile.ZipInfo(names[place]), data)


def _subset_npz(source: Path, out: Path, classes: list[str], per_class: int | None, test: bool) -> None:
    with np.load(source, allow_pickle=False) as file:
        names = [str(name) for name in file["class_names"]]
        arrays = {"class_names": np.array(classes)}
        held_out: set[bytes] = set()
        for split in (split for split in reversed(SPLITS) if f"{split}_labels" in file.files):
            pictures, labels = _pictures(file, split), file[f"{split}_labels"]
            kept: list[list[int]] = []
            for name in classes:
                own = np.flatnonzero(labels == names.index(name))
                places = own[_drawn(len(own), per_class if split == "train" else None)].tolist()
                kept.append([i for i in places if split != "train" or pictures(i) not in held_out])
            chosen = np.array([place for places in kept for place in places], dtype=np.int64)
            held_out |= {pictures(place) for place in chosen.tolist()}
            if split == "test" and not test:
                continue
            arrays[f"{split}_labels"] = np.repeat(np.arange(len(kept)), [len(places) for places in kept])
            if f"{split}_images" in file.files:
                arrays[f"{split}_images"] = file[f"{split}_images"][chosen]
            else:
                arrays |= _scans(split, [pictures(place) for place in chosen.tolist()])
        if "jpeg_header" in file.files:
            arrays["jpeg_header"] = file["jpeg_header"]
    with out.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _pictures(file: Any, split: str) -> Callable[[int], bytes]:
    """A split's pictures as bytes, by their place."""
    if f"{split}_images" in file.files:
        images = file[f"{split}_images"]
        return lambda place: images[place].tobytes()
    scans, offsets = file[f"{split}_scans"], file[f"{split}_offsets"]
    return lambda place: scans[offsets[place] : offsets[place + 1]].tobytes()


def _scans(split: str, pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Pictures behind one another, and where each begins and ends."""
    ends = np.cumsum([0, *map(len, pictures)], dtype=np.int64)
    return {f"{split}_scans": np.frombuffer(b"".join(pictures), np.uint8), f"{split}_offsets": ends}
