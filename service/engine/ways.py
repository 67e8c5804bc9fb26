"""The fast ways of a GPU that are in use; each that is None is done in plain torch instead."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .operators import Kernels

if TYPE_CHECKING:
    from .stages import Capture

log = logging.getLogger("taskpack.service")


class WriteView(Protocol):
    """How to write a whole view in one launch; a function."""

    def __call__(self, out: Tensor, source: Tensor, bits: Tensor | None, scale: Tensor | None, blocks: Tensor) -> None:
        """where(bit, source x scale, +0.0), as `masking.write` does it layer by layer."""
        ...


@dataclass(frozen=True, slots=True)
class Ways:
    """What an engine does better than torch's operators one by one.

    Attributes:
        masking: writes a view in one launch.
        kernels: what to compute with.
        capture: records a forward, to be replayed in one launch.
    """

    masking: WriteView | None = None
    kernels: Kernels | None = None
    capture: Capture | None = None


def find_ways(device: torch.device) -> Ways:
    """What was tried on this device, now, and found to agree with plain torch; nothing on a CPU."""
    if device.type != "cuda":
        return Ways()
    from .gpu.graphs import capture

    try:
        from .gpu.checks import checked
    except ImportError as error:
        log.warning("%s: plain torch instead of Triton's kernels, which cannot be imported: %s", device, error)
        return Ways(capture=capture)
    return checked(device)


def settle(device: torch.device) -> None:
    """Wait until what this thread has begun on the device is there for every other stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


__all__ = ["Ways", "WriteView", "find_ways", "settle"]
