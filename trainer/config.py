"""What a run may be asked for, checked all at once; the defaults that depend on the method are the method's own."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from masks_store import InvalidInput, check_task_name

from .board import tensorboard_fault
from .prune import parse_prune
from .ranks import process_faults, process_index

TRAINABLE_METHODS = ("packnet", "clr", "clnp", "piggyback", "bn", "linear", "finetune")
OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
VALUE_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NORMS = ("auto", "shared", "own")
LABELS = ("auto", "stable", "canary", "none")
PROBES = ("synthetic", "real")
RECIPES = ("best", "paper")
PRUNE_UNITS = ("weights", "filters")
ADAPTERS = ("depthwise", "full")
CLASS_WEIGHTS = ("none", "balanced")
AUGMENTS = ("auto", "none")
MOST_THREADS = 4096
"""As `serve` and `bench` have it; more end the process where OpenMP finds no memory for them."""
TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "prune": ("packnet",),
    "prune_by": ("packnet",),
    "train_layers": ("packnet",),
    "pick": ("packnet",),
    "retrain_lr": ("packnet",),
    "margin": ("packnet", "clnp"),
    "l1": ("clnp",),
    "finetune": ("clnp",),
    "adapter": ("clr",),
    "recipe": tuple(method for method in TRAINABLE_METHODS if method != "clnp"),
    "on": tuple(method for method in TRAINABLE_METHODS if method != "finetune"),
}
"""Settings that not every method takes -> the methods that do; packnet takes `margin` with `prune="auto"` alone."""


@dataclass(frozen=True)
class Settings:
    """What the user asks for: the flags of `taskpack train`; None leaves a choice to the method.

    Attributes:
        method: how the task is packed.
        on: the task it is built on, or `TASK@VERSION`; None: see `ground.choose_parent`.
        prune: share of what a PackNet task takes that it gives back, `auto` or `equal:T`; None: 0.75.
        margin: points of validation accuracy that `prune="auto"`, or clnp for fewer units, may give up; None: 0.5.
        pick: let a PackNet task also learn which of its lineage's weights it uses.
        l1: factor of clnp's L1; None: 1e-5 for networks of linear layers, else 1e-4.
        finetune: retrain a clnp task's new units after the others are gated.
        norm: whether BatchNorm is the task's own: `auto`, `shared` or `own`.
        prune_by: what PackNet prunes: `weights` or whole `filters`.
        train_layers: whose free weights a PackNet task takes: `all`, `last:N` or, none, `head`.
        adapter: behind which convolutions CLR puts one: `depthwise`, kernels larger than 1x1, or `full`, all.
        recipe: `best`, or `paper` for the published schedule; CLNP's is not known.
        label: where the new version's label goes: `auto` is `stable` for a new task and `canary` for a known one.
        out: write the artifact there and register nothing.
        epochs: of the main phase; the other phases scale with it.
        patience: end every phase after more than this many epochs without a better validation accuracy; None: as the
            recipe has it, 21 for clr, bn and linear under `paper` and no end before the last epoch elsewhere.
        lr, batch_size, optimizer, weight_decay: of the main phase; the other phases follow it.
        class_weight: `balanced` lets every class count the same in the training loss, however few its pictures.
        retrain_lr: of PackNet's retraining after pruning; None: a tenth of `lr`.
        precision: of the arithmetic; weights are always kept in fp32.
        value_dtype: what the artifact stores weights, adapter and head in.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: of the CPU arithmetic; None: as torch has it.
        augment: `auto`: training pictures are cropped at random unless the recipe says otherwise; `none`: never.
        flip: let training pictures be mirrored left to right.
        skip_broken: leave broken pictures out instead of refusing the source.
        seed: of everything that is random.
        probe: `synthetic` pictures in the artifact's self-test, or `real` ones from the validation split.
        tensorboard: write an event file into the run's folder; needs the package `tensorboard`.
        resume: go on with the newest unfinished run of this task.
        dry_run: say what would be done, and write nothing.
    """

    method: str = "packnet"
    on: str | None = None
    prune: float | str | None = None
    margin: float | None = None
    prune_by: str = "weights"
    train_layers: str = "all"
    pick: bool = False
    l1: float | None = None
    finetune: bool = False
    norm: str = "auto"
    adapter: str = "depthwise"
    recipe: str = "best"
    label: str = "auto"
    out: str | os.PathLike[str] | None = None
    epochs: int | None = None
    patience: int | None = None
    lr: float | None = None
    retrain_lr: float | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    class_weight: str = "none"
    precision: str = "32-true"
    value_dtype: str = "f32"
    device: str = "auto"
    threads: int | None = None
    augment: str = "auto"
    flip: bool = False
    skip_broken: bool = False
    seed: int = 0
    probe: str = "synthetic"
    tensorboard: bool = False
    resume: bool = False
    dry_run: bool = False


def settings_from(fields: Mapping[str, object]) -> Settings:
    """`Settings` from keyword arguments of the Python API.

    Raises:
        InvalidInput: naming every argument that there is not.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    unknown = [f"{name!r} is not a setting" for name in fields if name not in known]
    if unknown:
        raise InvalidInput(f"{'; '.join(unknown)}; settings are: {', '.join(known)}", unknown)
    return Settings(**fields)  # pyright: ignore[reportArgumentType]


def takes(method: str, name: str, settings: Settings) -> bool:
    """Whether a setting is for a method.

    Args:
        method: one of `TRAINABLE_METHODS`.
        name: a field of `Settings`.
        settings: what else is asked for.
    """
    if name == "margin" and method == "packnet":
        return settings.prune == "auto"
    return method in TAKEN_BY.get(name, TRAINABLE_METHODS)


def check_settings(task: str, settings: Settings) -> None:
    """Check all that can be known without the store and the data.

    Raises:
        InvalidInput: with every fault at once.
    """
    refuse(setting_faults(task, settings))


def refuse(faults: Sequence[str]) -> None:
    """Raise `InvalidInput` with these faults, if there are any."""
    if faults:
        raise InvalidInput(f"{len(faults)} things are wrong" if len(faults) > 1 else faults[0], faults)


def setting_faults(task: str, settings: Settings) -> list[str]:
    """What is wrong with a task's name and the settings, as far as that is known without the store and the data."""
    faults = [fault for fault in (_name_fault(task), _method_fault(settings.method)) if fault]
    faults += [fault for fault in (_prune_fault(settings), _prune_by_fault(settings)) if fault]
    faults += [fault for fault in (_retrain_fault(settings), _margin_fault(settings)) if fault]
    for flag, value, choices in (
        ("--norm", settings.norm, NORMS),
        ("--recipe", settings.recipe, RECIPES),
        ("--prune-by", settings.prune_by, PRUNE_UNITS),
        ("--adapter", settings.adapter, ADAPTERS),
        ("--class-weight", settings.class_weight, CLASS_WEIGHTS),
        ("--label", settings.label, LABELS),
        ("--value-dtype", settings.value_dtype, tuple(VALUE_DTYPES)),
        ("--optimizer", settings.optimizer, (None, *OPTIMIZERS)),
        ("--probe", settings.probe, PROBES),
        ("--augment", settings.augment, AUGMENTS),
    ):
        if value not in choices:
            faults.append(f"{flag} {value} is not one of {', '.join(c for c in choices if c)}")
    faults += [*machine_faults(settings), *_unit_faults(settings)]
    faults += [fault for fault in (_layers_fault(settings), _adapter_fault(settings), _flip_fault(settings)) if fault]
    faults += [fault for fault in (_norm_fault(settings), *_outside_faults(settings)) if fault]
    faults += [fault for fault in (_pick_fault(settings), _out_fault(settings)) if fault]
    faults += process_faults(settings.device)
    missing = tensorboard_fault() if settings.tensorboard else None
    return [*faults, missing] if missing else faults


def machine_faults(settings: Settings) -> list[str]:
    """What is wrong with the settings that every command shares which computes: numbers, precision, device."""
    faults = _number_faults(settings)
    if settings.precision not in PRECISIONS:
        hint = "; it would round frozen weights" if settings.precision == "bf16-true" else ""
        faults.append(f"--precision {settings.precision} is not one of {', '.join(PRECISIONS)}{hint}")
    device = _device_fault(settings.device)
    return [*faults, device] if device else faults


def _name_fault(task: str) -> str | None:
    try:
        check_task_name(task)
    except InvalidInput as error:
        return str(error)
    return None


def _method_fault(method: str) -> str | None:
    if method not in TRAINABLE_METHODS:
        return f"--method {method} is not one of {', '.join(TRAINABLE_METHODS)}"
    return None


def _prune_fault(settings: Settings) -> str | None:
    if settings.prune is None:
        return None
    try:
        parse_prune(settings.prune)
    except ValueError as error:
        return str(error)
    if settings.method in TRAINABLE_METHODS and settings.method != "packnet":
        return f"--prune is for packnet; {settings.method} takes no shared weights that it could give back"
    return None


def _prune_by_fault(settings: Settings) -> str | None:
    if settings.prune_by != "filters" or settings.method not in TRAINABLE_METHODS:
        return None
    if settings.method != "packnet":
        return f"--prune-by is for packnet; {settings.method} prunes no weights"
    return None if _gives_back(settings) else "--prune-by says what is pruned, and nothing is"


def _gives_back(settings: Settings) -> bool:
    """Whether a packnet task prunes anything of what it takes, as far as its settings alone tell."""
    try:
        return settings.train_layers != "head" and parse_prune(settings.prune) != 0.0
    except ValueError:
        return True  # told as a fault of its own


def _retrain_fault(settings: Settings) -> str | None:
    if settings.retrain_lr is None or settings.method not in TRAINABLE_METHODS:
        return None
    if settings.method != "packnet":
        return f"--retrain-lr is for packnet; {settings.method} has no retraining after pruning"
    return None if _gives_back(settings) else "--retrain-lr is of the retraining after pruning, and nothing is pruned"


def _margin_fault(settings: Settings) -> str | None:
    if settings.margin is None:
        return None
    if settings.prune != "auto" and settings.method != "clnp":
        return "--margin is what --prune auto may give up, or clnp; leave it out, or give --prune auto"
    if not 0.0 <= settings.margin <= 100.0:
        return f"--margin {settings.margin} must be points of accuracy from 0 to 100"
    return None


def _whole(value: object) -> bool:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _number_faults(settings: Settings) -> list[str]:
    faults: list[str] = []
    for flag, value, low in (
        ("--epochs", settings.epochs, 1),
        ("--patience", settings.patience, 0),
        ("--batch-size", settings.batch_size, 2),
        ("--seed", settings.seed, 0),
    ):
        if value is not None and (not _whole(value) or not low <= value < 2**63):
            faults.append(f"{flag} {value} must be a whole number of at least {low}")
    threads = settings.threads
    if threads is not None and (not _whole(threads) or not 1 <= threads <= MOST_THREADS):
        faults.append(f"--threads {threads} must be a whole number from 1 to {MOST_THREADS:,}")
    for flag, rate in (("--lr", settings.lr), ("--retrain-lr", settings.retrain_lr)):
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            faults.append(f"{flag} {rate} must be a finite number over 0")
    if settings.weight_decay is not None and not (math.isfinite(settings.weight_decay) and settings.weight_decay >= 0):
        faults.append(f"--weight-decay {settings.weight_decay} must be a finite number of at least 0")
    return faults


def _unit_faults(settings: Settings) -> list[str]:
    """The flags of clnp alone, and the one that it lacks."""
    given = {"--l1": settings.l1, "--finetune": settings.finetune or None}
    faults: list[str] = []
    if settings.method in TRAINABLE_METHODS and settings.method != "clnp":
        faults += [
            f"{flag} is for clnp, not for {settings.method}" for flag, value in given.items() if value is not None
        ]
    if settings.method == "clnp" and settings.recipe == "paper":
        faults.append(
            "--recipe paper is not there for clnp: its paper's learning rate, epochs and L1 are not known; leave "
            "--recipe out, or give --optimizer, --lr, --epochs and --l1"
        )
    if settings.l1 is not None and not 0.0 <= settings.l1 <= 1.0:  # a NaN is neither
        faults.append(f"--l1 {settings.l1} must be from 0 to 1")
    return faults


def _layers_fault(settings: Settings) -> str | None:
    layers = settings.train_layers
    if not re.fullmatch(r"all|head|last:0*[1-9][0-9]{0,3}", layers):
        return f"--train-layers {layers} is not one of all, head, last:N (N layers, 1 to 9999)"
    if layers != "all" and settings.method != "packnet":
        return f"--train-layers is for packnet; what {settings.method} trains is always the same"
    if layers == "head" and settings.prune is not None:
        return "--train-layers head takes no weights, so it has none to give back; leave --prune out"
    if layers != "all" and str(settings.prune).startswith("equal:"):
        return f"--prune equal:T shares out what is free in all layers; with --train-layers {layers} give a share"
    return None


def _adapter_fault(settings: Settings) -> str | None:
    if settings.adapter == "full" and settings.method != "clr":
        return f"--adapter is for clr; {settings.method} has no adapters"
    return None


def _flip_fault(settings: Settings) -> str | None:
    if settings.flip and settings.augment == "none":
        return "--flip does not go with --augment none, which shows pictures as they are"
    if settings.flip and settings.recipe == "paper" and settings.method in ("clr", "bn", "linear"):
        return f"--flip does not go with --recipe paper of {settings.method}, which does not augment"
    return None


def _norm_fault(settings: Settings) -> str | None:
    fixed = {"clr": "own", "bn": "own", "clnp": "own", "linear": "shared", "finetune": "own"}.get(settings.method)
    if fixed and settings.norm in NORMS and settings.norm not in ("auto", fixed):
        return f"--norm {settings.norm} does not go with {settings.method}, whose norm is always {fixed}"
    return None


def _pick_fault(settings: Settings) -> str | None:
    if not settings.pick or settings.method == "packnet" or settings.method not in TRAINABLE_METHODS:
        return None
    if settings.method == "piggyback":
        return "--pick is for packnet; piggyback picks from its base's weights anyway"
    return f"--pick is for packnet; {settings.method} uses all of its base's weights"


def _outside_faults(settings: Settings) -> list[str]:
    """What does not go with a run that registers nothing."""
    alone = settings.method == "finetune"
    faults: list[str] = []
    if alone and settings.on:
        faults.append("--on is for tasks of a store; finetune starts from the backbone's dense weights")
    if (alone or settings.out is not None) and settings.label in LABELS and settings.label not in ("auto", "none"):
        hint = "finetune, which registers nothing"
        if not alone:
            hint = "--out, which registers nothing; give the label to taskpack push"
        faults.append(f"--label {settings.label} does not go with {hint}")
    return faults


def _device_fault(device: str) -> str | None:
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if not match:
        return f"--device {device} is not one of auto, cpu, cuda, cuda:N"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            return f"--device {device} is not there: torch finds {count} CUDA device(s); use auto or cpu"
    return None


def _out_fault(settings: Settings) -> str | None:
    if settings.out is None:
        return None
    path = Path(settings.out)
    if path.is_dir():
        return f"--out {path} is a folder; give a file name, such as {path / 'task.safetensors'}"
    if not path.absolute().parent.is_dir():
        return f"--out {path}: the folder {path.parent} does not exist"
    return None


def resolve_device(device: str) -> torch.device:
    """The device that `auto` means here: a CUDA device if there is one (for each of several processes), or the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{process_index()}"
    return torch.device(device)
