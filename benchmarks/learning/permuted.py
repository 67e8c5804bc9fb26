"""Permuted MNIST: the same digits for every task, their pixels in another fixed order (Goodfellow et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masks_store import Preprocess, create, encode_backbone, read_backbone

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's training pixels, scaled to 0..1."""


@dataclass(frozen=True)
class Cut:
    """How much of the benchmark is run; the defaults are all of it.

    Attributes:
        tasks: how many permutations.
        train_images: pictures to train on; None: all that validation leaves.
        val_images: pictures taken out of the published training set to choose by.
        test_images: of the published test set; None: all; 0: no test split, by which nothing may be chosen.
    """

    tasks: int = 10
    train_images: int | None = None
    val_images: int = 6000
    test_images: int | None = None


def write_tasks(mnist: Path, folder: Path, seed: int, cut: Cut) -> list[Path]:
    """Write one source per task: `task01.npz`, … with splits train and val and, unless it is cut, the published test.

    Validation is drawn once and is the same digits for all tasks, so that no task validates on what another one
    trained on; so is a cut of the training set.

    Args:
        mnist: `train_images` u8 [N, H, W, 1], `train_labels`, `test_images`, `test_labels`.
        folder: is there; gets the files.
        seed: draws validation and permutations.
        cut: how much.
    """
    with np.load(mnist, allow_pickle=False) as file:
        images, labels = file["train_images"], file["train_labels"]
        tests, test_labels = file["test_images"], file["test_labels"]
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))
    val, train = order[: cut.val_images], order[cut.val_images :][: cut.train_images]
    paths: list[Path] = []
    for number in range(1, cut.tasks + 1):
        pixels = random.permutation(images[0].size)
        path = folder / f"task{number:02d}.npz"
        splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val])}
        if cut.test_images != 0:
            splits["test"] = (tests[: cut.test_images], test_labels[: cut.test_images])
        arrays = {f"{split}_images": _permuted(own, pixels) for split, (own, _) in splits.items()}
        np.savez(path, **arrays, **{f"{split}_labels": own for split, (_, own) in splits.items()})
        paths.append(path)
    return paths


def grey_backbone(arch: str, size: int, *, keep: float, seed: int) -> bytes:
    """The file of an MLP over one channel, which sees pixels with MNIST's mean 0 and deviation 1."""
    made = read_backbone(create(arch, image_size=size, keep=keep, seed=seed, arch_args={"channels": 1}).data)
    preprocess = Preprocess(resize=size, size=size, mean=(MEAN,) * 3, std=(STD,) * 3)
    return encode_backbone(made.manifest.model_copy(update={"preprocess": preprocess}), made.tensors, made.kept).data


def picture_side(mnist: Path) -> int:
    """Side of the pictures in pixels."""
    with np.load(mnist, allow_pickle=False) as file:
        return int(file["test_images"].shape[1])


def _permuted(images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)[:, pixels].reshape(images.shape)
