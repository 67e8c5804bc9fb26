"""The most probable classes of every picture, and how many of them one answer may name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from masks_store import Version

from ..errors import Problem

FEW_CLASSES = 256
"""Up to this many a sort of all is as fast as picking out the best first."""


def label_count(images: int, versions: Sequence[Version], top_k: int) -> int:
    """How many labels an answer has where every image is good."""
    return images * sum(min(top_k, len(version.manifest.classes)) for version in versions)


def check_labels(images: int, versions: Sequence[Version], top_k: int, most: int) -> None:
    """Refuse what would be answered with more labels than one answer may have.

    Args:
        images: how many were sent.
        versions: of the tasks that were asked.
        top_k: labels of each image and task, where there are so many classes.
        most: most labels.

    Raises:
        Problem: 413.
    """
    labels = label_count(images, versions, top_k)
    if labels <= most:
        return
    fits = most // (images * len(versions))
    lower = f"ask for top_k={fits} or less, or " if fits else ""
    raise Problem(
        413,
        f"{images} image(s) for {len(versions)} task(s) with top_k={top_k} are {labels} labels in one answer, more "
        f"than the limit of {most}: {lower}send fewer images or tasks at once",
        reason="too_large",
    )


def rank(logits: npt.NDArray[np.float32], top_k: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The most probable classes of every image, best first; equal ones in the order of the classes.

    Args:
        logits: float32 [N, classes].
        top_k: how many; all where there are fewer.

    Returns:
        Ids [N, k] and their softmax scores [N, k].

    Raises:
        FloatingPointError: a logit is not finite.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)  # [N, classes]
    if not np.isfinite(scores).all():
        raise FloatingPointError("the network gave logits that are not finite")
    order = _lowest_first(-logits, top_k)  # [N, k]
    return order, np.take_along_axis(scores, order, axis=1)


def _lowest_first(keys: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.intp]:
    """The first `most` columns of a stable argsort of every row, without sorting what is not asked for."""
    columns = keys.shape[1]
    if columns <= FEW_CLASSES or 2 * most > columns:
        return np.argsort(keys, axis=1, kind="stable")[:, :most]
    order = np.empty((len(keys), most), np.intp)
    highest = np.partition(keys, most - 1, axis=1)[:, most - 1]  # [N]: the last key of each row that is asked for
    for place, (row, last) in enumerate(zip(keys, highest, strict=True)):
        among = np.flatnonzero(row <= last)  # more than `most` where keys are equal to the last: the first of them stay
        order[place] = among[np.argsort(row[among], kind="stable")[:most]]
    return order
