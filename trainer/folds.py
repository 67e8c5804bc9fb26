"""Three folds of what is not for testing, for choices that the validation split is too small for."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from .data import Source, regroup

FOLDS = 3
MIN_PICTURES = 200


def too_small_for_folds(source: Source) -> str | None:
    """Why there are too few pictures to choose by folds, or None.

    Fewer than 200 besides the test split, or a class with fewer different ones than folds: one of them would train
    without it.
    """
    splits = [source.splits["train"], source.splits["val"]]
    count = sum(map(len, splits))
    if count < MIN_PICTURES:
        return f"{FOLDS} folds need {MIN_PICTURES} pictures for training and validation together, here are {count:,}"
    labels = np.concatenate([split.labels for split in splits])
    twins = splits[0].twins + splits[1].twins
    different: dict[int, set[Hashable]] = defaultdict(set)
    for label, twin in zip(labels.tolist(), twins, strict=True):
        different[label].add(twin)
    few = [source.classes[label] for label in sorted(different) if len(different[label]) < FOLDS]
    if few:
        named = ", ".join(few[:3]) + (f" and {len(few) - 3:,} more" if len(few) > 3 else "")
        return f"{FOLDS} folds need {FOLDS} different pictures of each class, which {named} has not"
    return None


def fold_sources(source: Source, seed: int) -> tuple[Source, ...]:
    """The source once per fold: that fold is its validation split, the others are its train split.

    Stratified by class. The test split is not in them.

    Args:
        source: not `too_small_for_folds`.
        seed: chooses who is in which.
    """
    train, val = source.splits["train"], source.splits["val"]
    labels = np.concatenate([train.labels, val.labels])
    own = deal([source.classes[n] for n in labels.tolist()], train.names + val.names, train.twins + val.twins, seed)
    return tuple(
        regroup(source, {"train": np.flatnonzero(own != fold), "val": np.flatnonzero(own == fold)})
        for fold in range(FOLDS)
    )


def deal(labels: Sequence[str], names: Sequence[str], twins: Sequence[Hashable], seed: int) -> npt.NDArray[np.int64]:
    """The fold of each picture, 0 to 2.

    Each class is dealt out on its own, in an order that seed, class and names choose; the next picture goes to the fold
    that has fewest of the class, among equals to the smallest. Copies of a picture stay together; those that stand
    under several classes, which no single class deals out, come first.

    Args:
        labels, names: of each picture.
        twins: equal for copies.
        seed: chooses the order.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, twin in enumerate(twins):
        groups[twin].append(place)

    def rank(places: list[int]) -> tuple[bool, str, bytes]:
        label = labels[places[0]]
        text = f"{seed}\0fold\0{label}\0{names[places[0]]}"
        single = len({labels[place] for place in places}) == 1
        return single, label, hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()

    folds = np.zeros(len(labels), np.int64)
    totals = [0] * FOLDS
    sizes: dict[str, list[int]] = defaultdict(lambda: [0] * FOLDS)
    for places in sorted(groups.values(), key=rank):
        own = {labels[place] for place in places}
        fold = min(range(FOLDS), key=lambda fold: (sum(sizes[label][fold] for label in own), totals[fold], fold))
        folds[places] = fold
        totals[fold] += len(places)
        for place in places:
            sizes[labels[place]][fold] += 1
    return folds
