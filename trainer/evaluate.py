"""`taskpack eval`: the accuracy of a store's tasks on a source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from masks_store import InvalidInput, Store, Version

from .config import Settings, machine_faults, resolve_device
from .data import Source, load_source
from .ground import version_fault
from .measure import Score, score_view
from .progress import Reporter, Silent
from .sources import source_fault
from .threads import threads as torch_threads

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Evaluated:
    """One task's result on a source."""

    task: str
    version: str
    method: str
    split: str
    score: Score


def evaluate(
    store: Store,
    task: str | None,
    source: str,
    *,
    version: str = "stable",
    split: str | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    device: str = "auto",
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> list[Evaluated]:
    """Measure one task, or all whose classes are the source's.

    Args:
        store: has the tasks.
        task: its name; None for every task that knows all of the source's classes.
        source: see `train`.
        version: label, digest or prefix.
        split: `train`, `val`, `test` or `all`; None: `test` where there is one, else `val`.
        seed: of the splits that the source does not have; the one of the training keeps its test split unseen.
        skip_broken: leave broken pictures out.
        device: as for `train`.
        threads: of the CPU arithmetic, one less prepares pictures beside it; None: as torch has it.
        reporter: shows what happens.

    Raises:
        InvalidInput: the source has classes that the task does not know (they are named), or no such split.
        NotFound: no such task or version.
    """
    faults = machine_faults(Settings(seed=seed, device=device, threads=threads))
    if split is not None and split not in SPLITS:
        faults.append(f"--split {split} is not one of {', '.join(SPLITS)}")
    missing = source_fault(source)
    faults += [missing] if missing else []
    if faults:
        unknown = version_fault(store, task, version) if task else None
        faults += [unknown] if unknown else []
        raise InvalidInput("; ".join(faults), faults)
    reporter = reporter or Silent()
    versions = [store.resolve(task, version)] if task else _labelled(store, version)
    preprocess = store.backbone.manifest.preprocess
    data = load_source(
        source, seed=seed, skip_broken=skip_broken, preprocess=preprocess, threads=threads, progress=reporter.load
    )
    for warning in data.warnings:
        reporter.warn(warning)
    chosen = _choose(data, split)
    fitting = [v for v in versions if set(data.classes) <= set(v.manifest.classes)]
    if not fitting:
        raise _misfit(task, versions, data)
    with torch_threads(threads):
        return [
            Evaluated(
                v.task, v.version, v.method, chosen, _score(store, v, data, chosen, device, torch.get_num_threads() - 1)
            )
            for v in fitting
        ]


def _score(store: Store, version: Version, data: Source, split: str, device: str, threads: int) -> Score:
    """Classes match by name: the source's label i is the task's class `places[i]`."""
    view = store.view(version.version)
    places = np.array([view.classes.index(name) for name in data.classes], dtype=np.int64)
    parts = [s for name, s in data.splits.items() if split in (name, "all")]
    where = resolve_device(device)
    scores = [score_view(store.backbone, view, part, where, threads, places) for part in parts]
    hits = torch.cat([s.hits for s in scores])
    loss = sum(s.loss * s.images for s in scores) / len(hits)
    return Score(int(hits.sum()) / len(hits), loss, len(hits), hits)


def _labelled(store: Store, version: str) -> list[Version]:
    return [store.resolve(task.name, version) for task in store.tasks() if version in task.labels]


def _choose(data: Source, split: str | None) -> str:
    if split is None:
        return "test" if "test" in data.splits else "val"
    if split != "all" and split not in data.splits:
        raise InvalidInput(f"{data.name} has no {split} split; it has {', '.join(data.splits)}")
    return split


def _misfit(task: str | None, versions: list[Version], data: Source) -> InvalidInput:
    if task is None:
        names = ", ".join(v.task for v in versions) or "none"
        return InvalidInput(
            f"no task of this store knows all {len(data.classes)} classes of {data.name} "
            f"({', '.join(data.classes[:8])}{'…' if len(data.classes) > 8 else ''}); its tasks: {names}"
        )
    unknown = [name for name in data.classes if name not in versions[0].manifest.classes]
    return InvalidInput(
        f"{data.name} has {len(unknown)} classes that task {task!r} does not know; its classes are: "
        f"{', '.join(versions[0].manifest.classes[:20])}",
        [f"class {name!r} is not one of {task!r}" for name in unknown],
    )
