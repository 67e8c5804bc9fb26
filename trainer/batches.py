"""Batches in the order of an epoch: shuffled and augmented for training, plain and in order for evaluation.

What a batch holds depends on (seed, task, phase, epoch) and the picture's index alone: threads, a resume in the
middle of an epoch and the number of processes change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from masks_store import Preprocess

from .augment import DRAWS, Windows, cut_windows, resample, window_side
from .data import Split
from .draws import draw, draw_key, draw_order

Indices = npt.NDArray[np.int64]
T = TypeVar("T")


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """How many pictures each batch of an epoch has, over all processes.

    At most `batch_size`, and their sizes differ by at most one. No batch is left with a single picture, which BatchNorm
    could not take: only for that does one have three where two are asked for.
    """
    batches = min(-(-samples // batch_size), max(1, samples // 2))
    return [samples // batches + (i < samples % batches) for i in range(batches)]


def train_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    task: str,
    phase: str,
    epoch: int,
    start: int = 0,
    flip: bool = False,
    augment: bool = True,
    device: torch.device | str = "cpu",
    threads: int = 2,
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[Tensor, Tensor]]:
    """One epoch of training, shuffled: batches of `batch_sizes`, the same for any number of processes.

    Of several processes each takes its part of every batch, pictures rank, rank + world, … of it.

    Args:
        split: what to train on.
        preprocess: the store's.
        batch_size: the most pictures of a batch, over all processes.
        seed, task, phase, epoch: choose order and crops.
        start: the first batch to yield, for a resume.
        flip: mirror every other picture.
        augment: random crops; False: the squares of evaluation, shuffled.
        device: where batches lie, and where crops are resized.
        threads: that read ahead; 0: none, the work is done when a batch is asked for.
        rank, world: which of how many processes this is.

    Yields:
        (uint8 [B, 3, size, size] contiguous, int64 [B] labels).
    """
    order = draw_order(draw_key(seed, task, phase, epoch, "order"), len(split))
    whole = np.split(order, np.cumsum(batch_sizes(len(split), batch_size))[:-1])
    batches = [batch[rank::world] for batch in whole[start:]]
    if augment:
        key = draw_key(seed, task, phase, epoch, "crop")
        side = window_side(split.canvas_side(preprocess))

        def cut(indices: Indices) -> Windows:
            canvases = split.canvases(indices, preprocess)
            return cut_windows(canvases, draw(key, indices, DRAWS), preprocess, side=side, flip=flip)

        for indices, windows in zip(batches, _ahead(cut, batches, threads), strict=True):
            yield resample(windows, preprocess.size, device), _labels(split, indices, device)
    else:
        yield from _plain(split, preprocess, batches, device, threads)


def eval_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    threads: int = 2,
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[Tensor, Tensor]]:
    """Every picture of a split once, in order, exactly as serving sees it; nothing is padded or left out.

    Args:
        split: what to evaluate on.
        preprocess: the store's.
        batch_size: pictures of a batch; the last may have fewer.
        device: where batches lie.
        threads: that read ahead; 0: none.
        rank, world: this process takes pictures rank, rank + world, …

    Yields:
        (uint8 [B, 3, size, size] contiguous, int64 [B] labels).
    """
    own = np.arange(rank, len(split), world, dtype=np.int64)
    batches = [own[first : first + batch_size] for first in range(0, len(own), batch_size)]
    yield from _plain(split, preprocess, batches, device, threads)


def _plain(
    split: Split, preprocess: Preprocess, batches: Sequence[Indices], device: torch.device | str, threads: int
) -> Generator[tuple[Tensor, Tensor]]:
    def gather(indices: Indices) -> Tensor:
        squares = split.squares(indices, preprocess)  # [B, size, size, 3]
        return torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))

    for indices, pixels in zip(batches, _ahead(gather, batches, threads), strict=True):
        yield pixels.to(device), _labels(split, indices, device)


def _labels(split: Split, indices: Indices, device: torch.device | str) -> Tensor:
    return torch.from_numpy(split.labels[indices]).to(device)


def _ahead(make: Callable[[Indices], T], batches: Sequence[Indices], threads: int) -> Iterator[T]:
    """`map(make, batches)`, a few batches ahead of what was asked for, in `threads` threads."""
    if threads < 1:
        yield from map(make, batches)
        return
    rest = iter(batches)
    with ThreadPoolExecutor(threads, "taskpack-batches") as pool:
        waiting: deque[Future[T]] = deque(pool.submit(make, indices) for indices in islice(rest, 2 * threads))
        try:
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, indices) for indices in islice(rest, 1))
                yield made
        finally:
            for future in waiting:
                future.cancel()
