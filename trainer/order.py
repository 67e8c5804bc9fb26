"""In which order to pack tasks with PackNet: hardest first, since later tasks find fewer free weights (METHODS §1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from masks_store import Backbone, InvalidInput, Store

from .capacity import capacity_of
from .config import Settings, machine_faults, resolve_device
from .data import load_source
from .features import features_of_split, linear_probe, nearest_class_mean
from .ground import holders_in
from .progress import Reporter, Silent
from .prune import DEFAULT_PRUNE
from .sources import source_fault
from .threads import threads as torch_threads


@dataclass(frozen=True)
class Candidate:
    """One source, probed; accuracies are fractions of 1 on its validation split.

    Attributes:
        source: as it was given.
        classes: how many.
        images: split -> pictures.
        linear_top1: of a linear probe on the backbone's frozen features.
        nearest_mean_top1: of the nearest class mean on the same.
    """

    source: str
    classes: int
    images: dict[str, int]
    linear_top1: float
    nearest_mean_top1: float


@dataclass(frozen=True)
class Place:
    """A candidate's place in the order, and the free weights that it would keep there.

    Attributes:
        candidate: what was probed.
        equal: weights kept under `--prune equal:T`.
        fixed: weights kept under `--prune 0.75` for every task.
    """

    candidate: Candidate
    equal: int
    fixed: int


@dataclass(frozen=True)
class Proposal:
    """The order proposed, hardest first.

    Attributes:
        places: in that order.
        tasks: T of `equal:T`: the versions of the store that hold claims already, and these.
        free, total: shared weights that nobody owns, and all.
    """

    places: tuple[Place, ...]
    tasks: int
    free: int
    total: int


def propose(
    store: Store,
    sources: Sequence[str],
    *,
    seed: int = 0,
    skip_broken: bool = False,
    device: str = "auto",
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> Proposal:
    """Probe each source on the backbone's frozen features, and order them by the linear probe's error.

    The features are those of the dense weights that the backbone was pruned from, where there are such. Nothing is
    written, and no test split is looked at.

    Args:
        store: whose backbone and free weights count.
        sources: see `train`.
        seed: of the splits that a source does not have.
        skip_broken: leave broken pictures out.
        device: as for `train`.
        threads: of the CPU arithmetic, one less prepares pictures beside it; None: as torch has it.
        reporter: shows what happens.

    Raises:
        InvalidInput: a source is faulty, or the store keeps nothing of its backbone.
    """
    faults = machine_faults(Settings(seed=seed, device=device, threads=threads))
    faults += [fault for fault in map(source_fault, sources) if fault]
    if faults:
        raise InvalidInput("; ".join(faults), faults)
    dense = store.dense()
    if dense.manifest.keep == 0.0:
        raise InvalidInput(
            "this store keeps nothing of its backbone (--keep 0), so there are no features to probe tasks on; "
            "probe them on a store with a pretrained backbone"
        )
    with torch_threads(threads):
        found = _probed(dense, sources, seed, skip_broken, resolve_device(device), reporter or Silent())
    return order(store, found)


def _probed(
    dense: Backbone, sources: Sequence[str], seed: int, skip_broken: bool, where: torch.device, reporter: Reporter
) -> list[Candidate]:
    threads = torch.get_num_threads()
    preprocess = dense.manifest.preprocess
    body = dense.body().to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found: list[Candidate] = []
    for name in sources:
        data = load_source(
            name, seed=seed, skip_broken=skip_broken, preprocess=preprocess, threads=threads, progress=reporter.load
        )
        for warning in data.warnings:
            reporter.warn(f"{name}: {warning}")
        reporter.say(f"probing {name}")
        train, val = (
            features_of_split(body, data.splits[split], preprocess, where, threads - 1) for split in ("train", "val")
        )
        images = {split: len(pictures) for split, pictures in data.splits.items()}
        count = len(data.classes)
        found.append(
            Candidate(name, count, images, linear_probe(train, val, count), nearest_class_mean(train, val, count))
        )
    return found


def order(store: Store, candidates: Sequence[Candidate]) -> Proposal:
    """Sort by the linear probe's accuracy, the lowest first, and share out what is free; equals stay as given."""
    capacity = capacity_of(store.capacity_left().values())
    ranked = sorted(candidates, key=lambda candidate: candidate.linear_top1)
    places = tuple(
        Place(
            candidate,
            equal=round(capacity.free / len(ranked)),
            fixed=round(capacity.free * DEFAULT_PRUNE**before * (1.0 - DEFAULT_PRUNE)),
        )
        for before, candidate in enumerate(ranked)
    )
    return Proposal(places, holders_in(store) + len(ranked), capacity.free, capacity.total)
