"""Weights for a new backbone: torchvision's, or a safetensors file of somebody's training, whatever it calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from . import container
from .bodies import is_own
from .errors import InvalidInput
from .networks import remove_head, whole_network

Weights = Path | Literal["torchvision"] | None

_COUNTER = "num_batches_tracked"
_QUERY = "encoder_q"
"""MoCo's files hold two encoders; the one that is trained by gradients is the one to use."""
_HEADS = ("fc", "classifier", "head", "projection_head", "projector", "predictor", "prototypes")
"""What follows the features in files of supervised and self-supervised training, where the body has no such part."""
_SHOWN = 3


def load_weights(
    body: nn.Module, arch: str, weights: Path | Literal["torchvision"]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict of a body from torchvision or a file.

    A file may lack the head, or have another behind the body. All names may begin with a common prefix (`module.`,
    `backbone.`, `module.encoder_q.`, …); what stands outside of it (a momentum encoder, a queue) is left out.

    Args:
        body: gives names and shapes.
        arch: its name.
        weights: `torchvision`, or the file; one that `source_fault` finds nothing wrong with.

    Returns:
        The state dict, float32, and a line for each thing that was stripped or left out.

    Raises:
        InvalidInput: the file cannot be read, or its tensors are not the network's: every fault by name.
    """
    where = str(weights)
    state = _download(arch) if weights == "torchvision" else _read_state(Path(weights))
    wanted = body.state_dict()
    named = [name for name in wanted if not name.endswith(_COUNTER)]
    prefix = _prefix(where, named, state.keys())
    inner = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    head = "" if is_own(arch) else remove_head(whole_network(arch))
    heads = sorted(name for name in inner if name not in wanted and _is_head(name, head))
    plain = {n: t.float() if t.is_floating_point() else t for n, t in inner.items() if n not in heads}
    for name in wanted.keys() - plain.keys():
        if name.endswith(_COUNTER):
            plain[name] = torch.zeros((), dtype=torch.int64)
    faults = [*state_faults(wanted, plain), *container.not_finite(plain)]
    if faults:
        under = f" under {prefix!r}" if prefix else ""
        raise InvalidInput(f"{where}: not the weights of {arch}{under}: {len(faults)} fault(s)", faults)
    outside = sorted(name for name in state if not name.startswith(prefix))
    notes = [f"the prefix {prefix!r} of its names was stripped"] if prefix else []
    if outside:
        notes.append(f"{len(outside)} tensors outside of it were left out ({_some(outside)})")
    if any(name.rpartition(".")[0] != head for name in heads):
        notes.append(f"its head was left out ({_some(heads)})")
    return plain, (f"{where}: {'; '.join(notes)}",) if notes else ()


def source_fault(arch: str, weights: Path | Literal["torchvision"]) -> str | None:
    """Why there are no weights there for a network, as far as that is seen without reading them."""
    if weights == "torchvision":
        return f"{arch} has no torchvision weights; use --weights none" if is_own(arch) else None
    path = Path(weights)
    if path.is_file():
        return None
    what = "is a directory" if path.is_dir() else "is no file" if path.exists() else "no such file"
    return f"{path}: {what}; --weights takes 'torchvision', 'none' or a safetensors file"


def state_faults(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One fault per tensor that is missing, unknown, or of another shape or dtype."""
    faults = [f"{name}: missing" for name in wanted if name not in found]
    for name, tensor in found.items():
        if name not in wanted:
            faults.append(f"{name}: the network has no such tensor")
        elif tensor.shape != wanted[name].shape:
            faults.append(f"{name}: {list(tensor.shape)} where {list(wanted[name].shape)} was expected")
        elif tensor.dtype != wanted[name].dtype:
            faults.append(f"{name}: {tensor.dtype} where {wanted[name].dtype} was expected")
    return faults


def _prefix(where: str, wanted: Collection[str], found: Collection[str]) -> str:
    """What the body's names begin with in a file; where no whole body is there, where most of one is."""
    prefixes = {
        name.removesuffix(last) for last in wanted for name in found if name == last or name.endswith(f".{last}")
    }
    counts = {prefix: sum(f"{prefix}{name}" in found for name in wanted) for prefix in sorted(prefixes)}
    whole = [prefix for prefix, count in counts.items() if count == len(wanted)]
    if len(whole) > 1:
        whole = [prefix for prefix in whole if _QUERY in prefix.split(".")] or whole
    if len(whole) > 1:
        raise InvalidInput(f"{where}: holds {len(whole)} networks, under {', '.join(whole)}; leave one of them in it")
    return whole[0] if whole else max(counts, key=lambda prefix: counts[prefix], default="")


def _is_head(name: str, head: str) -> bool:
    return name.partition(".")[0] in _HEADS or (head != "" and name.startswith(f"{head}."))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _read_state(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidInput(
            f"{path}: not a readable safetensors file ({error}); a checkpoint of torch.save must be converted first, "
            "with safetensors.torch.save_file of its state dict"
        ) from error


def _download(arch: str) -> dict[str, Tensor]:
    try:
        return whole_network(arch, weights="DEFAULT").state_dict()
    except (OSError, RuntimeError) as error:
        raise InvalidInput(
            f"torchvision's weights of {arch} could not be downloaded ({error}); "
            "give a safetensors file of its state dict with --weights FILE"
        ) from error
