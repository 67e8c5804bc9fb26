"""What is decided before a run's first step, and told to the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from masks_store import InvalidInput, Store

from .batches import batch_sizes
from .capacity import Capacity, capacity_of, cost, starving
from .config import Settings, resolve_device
from .data import Source, load_source
from .folds import FOLDS, fold_sources, too_small_for_folds
from .ground import Ground, ground_for
from .methods import METHODS, Method
from .methods.packnet import by_folds
from .phase import Phase
from .plan import Plan, make_plan, slow_precision
from .progress import Reporter
from .prune import DEFAULT_PRUNE, too_small_for_auto
from .selecting import too_few_steps
from .unit_use import unit_cost


@dataclass(frozen=True)
class Job:
    """All that is decided before the first step.

    Attributes:
        method, ground, plan, source, device: see `Loop`.
        capacity: of the store, before.
        warnings: for the user.
        folds: sources of the plan's phases in folds.
    """

    method: Method
    ground: Ground
    plan: Plan
    source: Source
    device: torch.device
    capacity: Capacity
    warnings: tuple[str, ...]
    folds: tuple[Source, ...] = ()


def prepare(
    store: Store, task: str, source: str | Source, settings: Settings, reporter: Reporter, processes: int = 1
) -> Job:
    """Resolve everything, and tell the user what is about to happen. Writes nothing.

    Args:
        store, task, settings, reporter: as for `train`.
        source: its pictures, or what `read_source` made of them.
        processes: that will train it together.
    """
    method = METHODS[settings.method]
    ground = ground_for(store, task, settings.method, settings.on)
    choices = method.choose(ground, settings)
    capacity = capacity_of(store.capacity_left().values())
    device = resolve_device(settings.device)
    data = source if isinstance(source, Source) else read_source(store, source, settings, reporter)
    warnings = list(data.warnings)
    small = too_small_for_auto(data) if choices.prune == "auto" else None
    too_few = too_small_for_folds(data) if small is not None else None
    folds: tuple[Source, ...] = ()
    if too_few is not None:
        warnings.append(f"{small}; {too_few}: so the share is {DEFAULT_PRUNE:g}")
        choices = method.choose(ground, dataclasses.replace(settings, prune=None, margin=None))
    elif small is not None:
        folds, choices = fold_sources(data, settings.seed), by_folds(choices)
    if method.takes_weights and settings.train_layers != "head" and capacity.starved:
        warnings.append(starving(capacity, settings.method))
    if lent := ground.lent_norm() if settings.method == "packnet" and not choices.own_norm else None:
        warnings.append(
            f"its BatchNorm is the base's, which task {lent!r} trained for itself; --norm own gives {task!r} its own"
        )
    if slow := slow_precision(settings.precision, device):
        warnings.append(slow)
    plan = make_plan(task, settings, ground, choices, data, device, processes)
    if still := _still_masks(plan, data):
        warnings.append(still)
    _check_shares(plan, (data, *folds))
    _introduce(store, plan, data, _cost(ground, plan, capacity, choices.takes), reporter)
    if folds:
        reporter.say(f"{small}, so {_fold_cost(plan.phases, data, folds)}")
    for warning in warnings:
        reporter.warn(warning)
    return Job(method, ground, plan, data, device, capacity, tuple(warnings), folds)


def _still_masks(plan: Plan, data: Source) -> str | None:
    """What is to be said where bitmasks are to be learned in too few steps."""
    if plan.method != "piggyback" and not plan.pick:
        return None
    return too_few_steps(plan.phases[0], len(batch_sizes(len(data.splits["train"]), plan.batch_size)))


def _fold_cost(phases: Sequence[Phase], data: Source, folds: Sequence[Source]) -> str:
    """What a search by folds does beside the run's own phases, if no trial ends it early."""
    own = sum(phase.epochs for phase in phases if phase.fold is None) * len(data.splits["train"])
    extra = sum(p.epochs * len(folds[p.fold - 1].splits["train"]) for p in phases if p.fold is not None)
    tried = sum(phase.fold is not None and phase.prune is not None for phase in phases)
    pool = sum(len(split) for split in folds[0].splits.values())
    return (
        f"the share is chosen by {FOLDS} folds of the {pool:,} pictures that are not for testing: {FOLDS} trainings "
        f"and up to {tried} trials more, at most {(own + extra) / own:.1f} times the pictures of a given share"
    )


def _check_shares(plan: Plan, sources: Sequence[Source]) -> None:
    """Each process gets a picture of every batch."""
    smallest = min(min(batch_sizes(len(source.splits["train"]), plan.batch_size)) for source in sources)
    if smallest < plan.processes:
        raise InvalidInput(
            f"{plan.processes} processes cannot share a batch of {smallest}: --batch-size {plan.batch_size} is for all "
            "processes together; give a larger one, or start fewer processes"
        )


def read_source(store: Store, source: str, settings: Settings, reporter: Reporter) -> Source:
    """Read a source's pictures as a run of these settings sees them."""
    return load_source(
        source,
        seed=settings.seed,
        skip_broken=settings.skip_broken,
        preprocess=store.backbone.manifest.preprocess,
        threads=torch.get_num_threads(),
        progress=reporter.load,
    )


def _introduce(store: Store, plan: Plan, data: Source, taking: str | None, reporter: Reporter) -> None:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    base = next((f"{v.task} ({v.version[:19]})" for v in store.versions() if v.version == plan.parent), "the backbone")
    reporter.say(f"{plan.task}: {plan.method} on {base}; {len(plan.classes)} classes; pictures: {sizes}")
    if taking is not None:
        known = any(v.task == plan.task for v in store.versions())
        text = f"task {plan.turn[0]} of {plan.turn[1]} equal ones: " if plan.turn else ""
        text += "the versions that are there keep theirs, and this one " if known else ""
        reporter.say(text + taking)


def _cost(ground: Ground, plan: Plan, capacity: Capacity, takes: int) -> str | None:
    """What the run takes of the store, in words; None where it takes nothing."""
    if plan.method == "clnp":
        return unit_cost(ground.backbone, ground.free)
    return cost(capacity, takes, plan.prune) if plan.prune is not None else None
