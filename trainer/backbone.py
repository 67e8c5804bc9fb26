"""`taskpack init`: the backbone that a store begins with, its kept weights retrained where its own data is at hand.

The store is made when that is done, so the run's directory stands beside it until then, in `.<name>.init/`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from masks_store import (
    CAPACITIES,
    Backbone,
    BackboneFile,
    InvalidInput,
    Provenance,
    Store,
    Weights,
    backbone_faults,
    create,
    encode_backbone,
    read_backbone,
    vacancy_fault,
)

from .config import Settings, machine_faults, resolve_device
from .data import Source, load_source
from .ground import Ground
from .interrupt import Interrupted, stop_requests, stopped
from .loop import Keeper, Loop
from .methods.kept import KeptWeights
from .plan import make_fabric, make_plan, seeded
from .progress import Reporter, Silent
from .ranks import refuse_processes
from .runs import last_checkpoint, open_run, remove_runs
from .sources import source_fault
from .threads import threads


def init(
    path: str | os.PathLike[str],
    backbone: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    keep: float = 1.0,
    capacity: str = "weights",
    data: str | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Make a store.

    Args:
        path: a directory that does not exist, or is empty.
        backbone: one of our own networks or the name of a torchvision one; see `masks_store.build`.
        weights: `torchvision`, a safetensors file of the network's state dict, or None (or `none`) for a random start.
        image_size: side of the input in pixels.
        keep: share of each layer's weights that stay the backbone's own; the rest is free for tasks.
        capacity: what tasks take: `weights`, or `units` (whole neurons and filters, for clnp; needs keep 0).
        data: the backbone's own data: its kept weights and norm are retrained on it after pruning.
        settings: seed, device, threads, epochs, lr and batch size of that, and whether it goes on with one that was
            stopped (`resume`).
        reporter: shows what happens.

    Raises:
        InvalidInput: with every fault of the arguments.
        Diverged: the loss of the retraining was not finite.
        Interrupted: Ctrl-C or SIGTERM while it retrained; the checkpoint was kept, and `resume` goes on.
    """
    refuse_processes("init")
    settings, reporter = settings or Settings(), reporter or Silent()
    chosen: Weights = None
    if weights is not None and str(weights) != "none":
        chosen = "torchvision" if str(weights) == "torchvision" else Path(weights)
    faults = _faults(os.fspath(path), keep, capacity, data, settings)
    faults += backbone_faults(backbone, chosen, image_size, keep)
    if faults:
        raise InvalidInput("; ".join(faults), faults)
    file = create(backbone, weights=chosen, image_size=image_size, keep=keep, seed=settings.seed)
    for note in file.notes:
        reporter.say(note)
    if chosen is None and data is None and keep > 0:
        reporter.warn(
            f"the backbone's weights are random, and --keep {keep:g} holds them as they are for ever: give --weights "
            "torchvision or a file, or --keep 0, with which the first task trains them"
        )
    runs = _runs_of(Path(path))
    if data is not None:
        with threads(settings.threads):
            file = retrain(file, data, settings, reporter, runs)
    store = Store.create(Path(path), file, capacity=capacity)
    if data is not None:
        remove_runs(runs)
    return store


def _runs_of(path: Path) -> Path:
    """Where the run stands that makes the store `path`."""
    path = path.resolve()
    return path.parent / f".{path.name}.init"


def retrain(file: BackboneFile, data: str, settings: Settings, reporter: Reporter, runs: Path) -> BackboneFile:
    """Phase A's retraining: the file with its kept weights, biases and norm adapted to being pruned.

    Args:
        file: a pruned backbone.
        data: the backbone's own data, or what is nearest to it.
        settings: seed, device, epochs, lr, batch size, precision, flip, resume.
        reporter: shows what happens.
        runs: the folder of the run's directory, which stays there.

    Raises:
        InvalidInput: the data is wrong, or the run to go on with has other settings.
        Diverged: the loss was not finite.
        Interrupted: Ctrl-C or SIGTERM; the checkpoint was kept.
    """
    backbone = read_backbone(file.data)
    device = resolve_device(settings.device)
    source = load_source(
        data,
        seed=settings.seed,
        skip_broken=settings.skip_broken,
        preprocess=backbone.manifest.preprocess,
        threads=torch.get_num_threads(),
        progress=reporter.load,
    )
    for warning in source.warnings:
        reporter.warn(warning)
    body = _train(backbone, source, settings, device, reporter, runs)
    provenance = Provenance(seed=settings.seed, data=source.digest, versions=backbone.manifest.provenance.versions)
    manifest = backbone.manifest.model_copy(update={"norm_adapted": True, "provenance": provenance})
    return BackboneFile(encode_backbone(manifest, body, backbone.kept).data, file.source)


def _train(
    backbone: Backbone, source: Source, settings: Settings, device: torch.device, reporter: Reporter, runs: Path
) -> dict[str, torch.Tensor]:
    method, ground = KeptWeights(), Ground(backbone, (), {})
    plan = make_plan("backbone", settings, ground, method.choose(ground, settings), source, device)
    runs.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_run(runs, plan, reporter, resume=settings.resume) as folder,
        seeded(plan, device),
        stop_requests() as stop,
    ):
        keeper = Keeper(save=folder.write, results=folder.write_results, stop=lambda: bool(stop()))
        loop = Loop(method, ground, plan, source, make_fabric(plan.precision, device), reporter, keeper)
        try:
            trained = loop.run(last_checkpoint(folder.path))
        except Interrupted as interrupted:
            raise stopped(folder.path, stop()) from interrupted
    return {name: tensor.detach().cpu() for name, tensor in trained.network.body.state_dict().items()}


def _faults(path: str, keep: float, capacity: str, data: str | None, settings: Settings) -> list[str]:
    faults = machine_faults(settings)
    place = vacancy_fault(Path(path)) if path else "the store's path is empty; name a directory"
    faults += [fault for fault in (place, source_fault(data) if data is not None else None) if fault]
    if capacity not in CAPACITIES:
        faults.append(f"--capacity {capacity} is not one of {', '.join(CAPACITIES)}")
    elif capacity == "units" and keep != 0.0:
        faults.append(f"--capacity units needs --keep 0, not {keep:g}: it is for training from scratch with clnp")
    if data is not None and keep in (0.0, 1.0):
        pruned = "all" if keep == 0 else "nothing"
        faults.append(f"--data retrains what is left after pruning, but --keep {keep:g} prunes {pruned}")
    for flag, value in (("--epochs", settings.epochs), ("--batch-size", settings.batch_size)):
        if data is None and value is not None:
            faults.append(f"{flag} is for retraining; it needs --data")
    if data is None and settings.resume:
        faults.append("--resume goes on with retraining; it needs --data")
    return faults
