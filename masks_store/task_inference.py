"""Which task is a picture for? The nearest class mean on the backbone's own features (METHODS §5).

Features are projected to 128 dimensions by a fixed orthonormal matrix. A task keeps the mean of each of its classes and
the scatter around them: sums, which merge with those of other tasks without a picture being read again. The covariance
is pooled over all classes of all tasks, as in linear discriminant analysis and in Lee et al., arXiv 1807.03888 §2.1;
the smallest Mahalanobis distance names the task. Whether the picture is of that task at all is then told by the task's
own calibration on held-out pictures. Ours: the projection, the shrinkage, the calibration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DIMENSIONS = 128
STEPS = 100
"""Calibration keeps so many equal steps of the held-out pictures' distances: `STEPS + 1` percentiles."""


@dataclass(frozen=True)
class Sums:
    """What a task knows of its pictures' projected backbone features.

    Attributes:
        mean: float [classes, 128]; a row without pictures (`count` 0) means nothing.
        scatter: float32 [128, 128], the sum over all pictures of (z - class mean)(z - class mean)ᵀ.
        count: int64 [classes], pictures of each class.
        scores: float32 [101], rising: percentiles 0 to 100 of the held-out pictures' own distances (`own_distances`).
    """

    mean: Tensor
    scatter: Tensor
    count: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Guess:
    """The task that pictures seem to be for.

    Attributes:
        version: of the task.
        score: 0 to 1: the share of the task's own held-out pictures that lie no nearer to its classes than these;
            the mean over the pictures. About uniform for the task's own pictures, near 0 for what it has never seen.
        distance: the mean squared Mahalanobis distance to the nearest of the task's classes.
    """

    version: str
    score: float
    distance: float


def projection(backbone: str, features: int) -> Tensor:
    """The store's fixed projection: rows are orthonormal.

    Args:
        backbone: digest of the backbone: it seeds the matrix, so every artifact of the store has the same one.
        features: F, how many features the backbone gives; at least 128.

    Returns:
        float32 [128, F].

    Raises:
        ValueError: fewer than 128 features.
    """
    if features < DIMENSIONS:
        raise ValueError(f"{features} features are fewer than {DIMENSIONS}")
    seed = int.from_bytes(hashlib.sha256(f"{backbone}/task inference".encode()).digest()[:16], "big")
    raw = np.random.Philox(key=seed).random_raw(2 * DIMENSIONS * features)  # the bits of a Philox never change
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = uniform.reshape(2, features, DIMENSIONS)
    normal = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * math.pi * angle)  # Box and Muller
    q, r = np.linalg.qr(normal)  # [F, 128], [128, 128]
    q *= np.sign(np.diag(r))  # the one such q whatever library computed it
    return torch.from_numpy(np.ascontiguousarray(q.T)).to(torch.float32)


class SumsBuilder:
    """Gathers a task's sums, a batch at a time, in float64.

    Args:
        classes: how many the task has.
    """

    def __init__(self, classes: int) -> None:
        self._count = torch.zeros(classes, dtype=torch.int64)
        self._total = torch.zeros(classes, DIMENSIONS, dtype=torch.float64)
        self._square = torch.zeros(DIMENSIONS, DIMENSIONS, dtype=torch.float64)

    def add(self, z: Tensor, labels: Tensor) -> None:
        """Take in projected features [N, 128] of pictures with labels int64 [N]."""
        z, labels = z.detach().to("cpu", torch.float64), labels.cpu()
        self._count += torch.bincount(labels, minlength=len(self._count))
        self._total.index_add_(0, labels, z)
        self._square += z.T @ z

    def finish(self, held_out: Tensor) -> Sums:
        """The sums, calibrated on projected features [N, 128] of pictures that were not added."""
        count = self._count.clamp(min=1).to(torch.float64)[:, None]
        mean = self._total / count
        scatter = self._square - mean.T @ (self._count.to(torch.float64)[:, None] * mean)
        scatter = (scatter + scatter.T) / 2
        sums = Sums(mean.half(), scatter.float(), self._count.clone(), torch.zeros(STEPS + 1))
        distances = own_distances(sums, held_out)
        ranks = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
        return Sums(sums.mean, sums.scatter, sums.count, torch.quantile(distances, ranks).float())


def covariance(scatter: Tensor, count: int, classes: int) -> Tensor:
    """The pooled covariance, shrunk towards a sphere of the same trace where pictures are few.

    Args:
        scatter: [128, 128], summed over tasks.
        count: pictures.
        classes: with pictures.

    Returns:
        float64 [128, 128], positive definite: (1 - a) S / (count - classes) + a · trace / 128 · I with
        a = 128 / (128 + count).
    """
    pooled = scatter.to(torch.float64) / max(1, count - classes)
    share = DIMENSIONS / (DIMENSIONS + count)
    sphere = pooled.trace() / DIMENSIONS + 1e-12
    return (1 - share) * pooled + share * sphere * torch.eye(DIMENSIONS, dtype=torch.float64)


def own_distances(sums: Sums, z: Tensor) -> Tensor:
    """Squared Mahalanobis distance of each picture to the nearest class of one task, under that task's own covariance.

    Args:
        sums: the task's.
        z: projected features [N, 128].

    Returns:
        float64 [N].
    """
    there = sums.count > 0
    whitener = _whitener(covariance(sums.scatter, int(sums.count.sum()), int(there.sum())))
    means = sums.mean[there].to(torch.float64) @ whitener
    return torch.cdist(z.to("cpu", torch.float64) @ whitener, means).square().min(1).values


class TaskInference:
    """Names the task of pictures, among versions whose sums it was given.

    Args:
        sums: version -> its sums; at least one.
    """

    def __init__(self, sums: Mapping[str, Sums]) -> None:
        self.sums: Mapping[str, Sums] = dict(sums)
        """What it was given."""
        count = sum(int(one.count.sum()) for one in sums.values())
        classes = sum(int((one.count > 0).sum()) for one in sums.values())
        scatter = torch.zeros(DIMENSIONS, DIMENSIONS, dtype=torch.float64)
        for one in sums.values():  # one at a time: thousands together would take a hundred kilobytes each
            scatter += one.scatter
        self._whitener = _whitener(covariance(scatter, count, classes))
        there = torch.tensor([int((one.count > 0).sum()) for one in sums.values()])
        self._owner = torch.repeat_interleave(torch.arange(len(sums)), there)  # [classes of all tasks]: whose
        means = [one.mean[one.count > 0].to(torch.float64) for one in sums.values()]
        self._means = torch.cat(means) @ self._whitener  # [classes of all tasks, 128]

    def guess(self, z: Tensor) -> Guess:
        """The one task that all the pictures together are nearest to.

        With one covariance for all, the log-likelihood of several pictures under a task is, but for a constant, minus
        half the sum of their distances.

        Args:
            z: projected backbone features [N, 128], at least one row.
        """
        white = z.to("cpu", torch.float64) @ self._whitener
        distances = torch.cdist(white, self._means).square()  # [N, classes of all tasks]
        names = list(self.sums)
        nearest = torch.full((len(white), len(names)), math.inf, dtype=torch.float64)
        nearest.scatter_reduce_(1, self._owner.expand(len(white), -1), distances, "amin")
        mean = nearest.mean(0)  # [tasks]
        best = int(mean.argmin())
        sums = self.sums[names[best]]
        return Guess(names[best], typicality(sums, own_distances(sums, z)), float(mean[best]))


def typicality(sums: Sums, distances: Tensor) -> float:
    """The share of held-out pictures that lie no nearer than these distances [N]; the mean over them."""
    ranks = np.linspace(0.0, 1.0, STEPS + 1)
    below = np.interp(distances.numpy(), sums.scores.double().numpy(), ranks)
    return float(np.mean(1.0 - below))


def _whitener(covariance: Tensor) -> Tensor:
    """W [128, 128] with (x W)(y W)ᵀ = x Σ⁻¹ yᵀ."""
    lower = torch.linalg.cholesky(covariance)
    return torch.linalg.inv(lower).T
