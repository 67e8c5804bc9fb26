"""A run, resolved: all that decides its bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from masks_store import lacks_instructions

from .config import Settings
from .data import Source
from .phase import Phase

if TYPE_CHECKING:
    from .ground import Ground

LIBRARIES = ("taskpack", "torch", "torchvision", "lightning-fabric", "numpy", "pillow")


@dataclass(frozen=True)
class Choices:
    """What a method makes of the user's settings on a ground.

    Attributes:
        phases: in order.
        batch_size: pictures a step.
        own_norm: whether BatchNorm is the task's own.
        prune: the share given back, or `auto`; None for a method that takes no shared weights, or whole units.
        margin: points of validation accuracy that `auto`, or clnp for fewer units, may give up; None elsewhere.
        turn: t and T where the share is `equal:T`: the t-th task of T.
        takes: how many free weights train in the main phase.
        augment: whether training pictures are cropped at random.
    """

    phases: tuple[Phase, ...]
    batch_size: int
    own_norm: bool
    prune: float | Literal["auto"] | None = None
    margin: float | None = None
    turn: tuple[int, int] | None = None
    takes: int = 0
    augment: bool = True


@dataclass(frozen=True)
class Plan:
    """A run, resolved. A killed run is resumed only under an equal plan.

    Attributes:
        task, method, recipe, adapter, prune_by, train_layers: see `Settings`.
        class_weight, seed, flip, probe, precision, value_dtype: see `Settings`.
        parent: version that the task is built on; None for the backbone alone.
        backbone: digest of the shared network.
        data: digest of the source and its split.
        classes: class names, in the head's order.
        prune: share that is given back, or `auto`; None where nothing is taken, or whole units.
        margin, turn, augment: see `Choices`.
        pick: which of the lineage's weights it uses is learned too.
        own_norm: BatchNorm is the task's own.
        founding: the first claim of a store that keeps nothing: random start, norm and biases trained with it.
        free: digest of the free weights that the run began with; None for a method that takes none.
        phases: see `Phase`.
        batch_size, device, threads: as used; the batch is that of all processes together.
        processes: that train together.
        versions: of the libraries that compute.
    """

    task: str
    method: str
    recipe: str
    adapter: str
    parent: str | None
    backbone: str
    data: str
    classes: tuple[str, ...]
    prune: float | Literal["auto"] | None
    margin: float | None
    turn: tuple[int, int] | None
    prune_by: str
    train_layers: str
    pick: bool
    own_norm: bool
    founding: bool
    free: str | None
    phases: tuple[Phase, ...]
    batch_size: int
    class_weight: str
    seed: int
    augment: bool
    flip: bool
    probe: str
    precision: str
    value_dtype: str
    device: str
    threads: int
    processes: int
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        fields = dataclasses.asdict(self)
        return {**fields, "classes": list(self.classes), "phases": [dataclasses.asdict(p) for p in self.phases]}


def make_plan(
    task: str,
    settings: Settings,
    ground: Ground,
    choices: Choices,
    source: Source,
    device: torch.device,
    processes: int = 1,
) -> Plan:
    """Resolve a run from what was asked, what stands under it, what the method chose, and the data."""
    takes = choices.prune is not None or choices.margin is not None
    return Plan(
        task=task,
        method=settings.method,
        recipe=settings.recipe,
        adapter=settings.adapter,
        parent=ground.parent,
        backbone=ground.backbone.digest,
        data=source.digest,
        classes=source.classes,
        prune=choices.prune,
        margin=choices.margin,
        turn=choices.turn,
        prune_by=settings.prune_by,
        train_layers=settings.train_layers,
        pick=settings.pick and not ground.empty,
        own_norm=choices.own_norm,
        founding=choices.prune is not None and ground.empty,
        free=_digest(ground.free) if takes else None,
        phases=_patient(choices.phases, settings.patience),
        batch_size=choices.batch_size,
        class_weight=settings.class_weight,
        seed=settings.seed,
        augment=choices.augment and settings.augment != "none",
        flip=settings.flip,
        probe=settings.probe,
        precision=settings.precision,
        value_dtype=settings.value_dtype,
        device=str(device) if processes == 1 else device.type,
        threads=torch.get_num_threads(),
        processes=processes,
        versions={name: library_version(name) for name in LIBRARIES},
    )


def _patient(phases: tuple[Phase, ...], patience: int | None) -> tuple[Phase, ...]:
    """The phases as the method chose them, or all with the patience that the user asks for."""
    return phases if patience is None else tuple(dataclasses.replace(phase, patience=patience) for phase in phases)


WAIT = timedelta(days=1)
"""How long a process waits for another: the first measures and writes alone. One that dies is missed at once."""


def make_fabric(precision: str, device: torch.device, processes: int = 1) -> Fabric:
    """Lightning Fabric on one device, or on one in each of the processes that torchrun started.

    Args:
        precision: one of `config.PRECISIONS`.
        device: this process's.
        processes: how many there are; with several this waits for all of them. Their gradients are averaged.
    """
    devices = processes if processes > 1 else 1 if device.type == "cpu" else [device.index or 0]
    strategy = _strategy() if processes > 1 else "auto"
    plugins: list[Any] = [TorchElasticEnvironment()] if processes > 1 else []
    if precision == "32-true":
        plugins.append(Precision())
    else:
        # As a plugin: given "16-mixed" by name, Fabric would warn and take bf16 on a CPU, where torch can compute fp16.
        plugins.append(MixedPrecision(cast(Literal["16-mixed", "bf16-mixed"], precision), device.type))
    fabric = Fabric(accelerator=device.type, devices=devices, strategy=strategy, plugins=plugins)
    if processes > 1:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else each process tells that it is there
        fabric.launch()
    return fabric


def slow_precision(precision: str, device: torch.device) -> str | None:
    """What to tell the user of a precision that a device has no instructions for; None where there is nothing to."""
    dtype, name = _MIXED.get(precision, (torch.float32, ""))
    if not lacks_instructions(dtype, device):
        return None
    return (
        f"this processor has no instructions for {name} and imitates them: --precision {precision} is slower here than"
        " 32-true, by up to ten times"
    )


_MIXED = {"bf16-mixed": (torch.bfloat16, "bfloat16"), "16-mixed": (torch.float16, "float16")}


def _strategy() -> DDPStrategy:
    """DDP that leaves buffers alone: they are equal anyway, and in evaluation a process may have a batch more."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # as older torch has it
    buffers: dict[str, Any] = {name: False}
    return DDPStrategy(timeout=WAIT, **buffers)


@contextlib.contextmanager
def seeded(plan: Plan, device: torch.device) -> Generator[None]:
    """Run the block with torch's generators seeded for the plan; the caller's are put back after it."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed_of(plan, "train"))
        yield


def seed_of(plan: Plan, purpose: str) -> int:
    """A number below 2^63 from the run's seed, its task, and what it is for."""
    text = f"{plan.seed}/{plan.task}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _digest(masks: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(masks):
        hasher.update(name.encode())
        hasher.update(masks[name].contiguous().numpy().tobytes())
    return "sha256:" + hasher.hexdigest()
