"""A run's checkpoint: one safetensors file, written whole or not at all (METHODS §0.8).

It holds what the next step depends on: position, weights, what may train, optimiser, gradient scaler, best so far,
what later phases start from and are chosen by, random state. The learning rate, the order of the pictures and their
crops are functions of seed and position.
No pickle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from masks_store import InvalidInput, write_file

from .freeze import Trainable
from .results import Row
from .sparsify import Candidate

_FORMAT = 3
_KEY = "taskpack-checkpoint"


@dataclass
class Position:
    """Where a run stands, and what it has measured; plain numbers.

    Attributes:
        phase, epoch, batch: the next step to make, 0-based.
        seconds: spent in the present epoch so far, over all sittings.
        cpu_seconds: CPU time since the last row, up to each sitting's last checkpoint.
        loss, correct, seen: sums over the present epoch's pictures.
        best_top1, best_loss, best_epoch: of the present phase, on the validation split; epoch 0 is the phase's start.
        stale: epochs since the best validation accuracy.
        rows: the results of the epochs that are done.
        scan: the thresholds that clnp has tried.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    seen: int = 0
    best_top1: float = -1.0
    best_loss: float = 0.0
    best_epoch: int = -1
    stale: int = 0
    rows: list[Row] = field(default_factory=list[Row])
    scan: list[Candidate] = field(default_factory=list[Candidate])


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Attributes:
        position: where it stands.
        network: the state dict.
        trainable: what trains in the present phase.
        best: trained tensors and statistics at the present phase's best epoch.
        starts: name of a phase that later ones start from -> the state dict at its best.
        hits: name of a phase -> which validation pictures its best gets right.
        optimizer: `<parameter>/<state>` -> tensor.
        scaler: state of the gradient scaler; empty without one.
        random: device -> state of torch's generator.
    """

    position: Position
    network: Mapping[str, Tensor]
    trainable: Trainable
    best: Mapping[str, Tensor]
    starts: Mapping[str, Mapping[str, Tensor]]
    hits: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    scaler: Mapping[str, Any]
    random: Mapping[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a crash at any moment leaves the old file or the new one."""
    masks = {name: mask for name, mask in checkpoint.trainable.items() if mask is not None}
    groups = {
        "network": checkpoint.network,
        "mask": masks,
        "best": checkpoint.best,
        "start": {f"{phase}/{name}": t for phase, state in checkpoint.starts.items() for name, t in state.items()},
        "hits": checkpoint.hits,
        "optimizer": checkpoint.optimizer,
        "random": checkpoint.random,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    rest = {
        "format": _FORMAT,
        "position": dataclasses.asdict(checkpoint.position),
        "trainable": list(checkpoint.trainable),
        "scaler": dict(checkpoint.scaler),
    }
    write_file(path, safetensors.torch.save(tensors, metadata={_KEY: json.dumps(rest)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InvalidInput: not a checkpoint of this version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        tensors = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InvalidInput(f"{path}: not a readable checkpoint ({error}); train without --resume") from error
    if rest.get("format") != _FORMAT:
        raise InvalidInput(f"{path}: a checkpoint of another version; train without --resume")
    names = ("network", "mask", "best", "start", "hits", "optimizer", "random")
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        group, _, member = name.partition("/")
        groups[group][member] = tensor
    starts: dict[str, dict[str, Tensor]] = {}
    for member, tensor in groups["start"].items():
        phase, _, name = member.partition("/")
        starts.setdefault(phase, {})[name] = tensor
    position = Position(**rest["position"])
    position.rows = [Row(**cast(dict[str, Any], row)) for row in position.rows]
    position.scan = [Candidate(**cast(dict[str, Any], candidate)) for candidate in position.scan]
    return Checkpoint(
        position=position,
        network=groups["network"],
        trainable={name: groups["mask"].get(name) for name in rest["trainable"]},
        best=groups["best"],
        starts=starts,
        hits=groups["hits"],
        optimizer=groups["optimizer"],
        scaler=rest["scaler"],
        random=groups["random"],
    )


# ---------------------------------------------------------------- optimiser and random state as named tensors


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, `<parameter>/<state>` -> tensor; what is None (a momentum not yet begun) is left out."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give a new optimiser the state of a saved one, each tensor in its parameter's memory format and device."""
    for name, saved in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = network.get_parameter(owner)
        like = torch.empty_like(parameter, dtype=saved.dtype) if saved.shape == parameter.shape else saved.clone()
        optimizer.state[parameter][key] = like.detach().copy_(saved)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that a run draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put torch's generators back to a saved state."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
