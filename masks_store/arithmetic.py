"""How a device computes: float32 without shortcuts, and whether it has instructions for narrower numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

import torch

INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""What torch calls a processor's instructions for products of narrow numbers."""


def lacks_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device is a CPU without instructions for a dtype: it imitates them, slower than float32.

    Args:
        dtype: float32, bfloat16 or float16.
        device: of a GPU nothing is said.
    """
    if device.type != "cpu" or dtype not in INSTRUCTIONS:
        return False
    known = getattr(torch.cpu, "get_capabilities", None)  # older torch does not tell
    if known is None:
        return False
    found = known()
    return not any(found.get(name) for name in INSTRUCTIONS[dtype])


@contextlib.contextmanager
def plain_arithmetic() -> Generator[None]:
    """fp32 as written: no TF32 on a GPU while the block runs, nor while another thread is in one."""
    with _plain.lock:
        if not _plain.inside:
            _plain.before = bool(torch.backends.cuda.matmul.allow_tf32), bool(torch.backends.cudnn.allow_tf32)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        _plain.inside += 1
    try:
        yield
    finally:
        with _plain.lock:
            _plain.inside -= 1
            if not _plain.inside:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = _plain.before


@dataclass
class _Plain:
    """The switches belong to the process: the last thread out sets them back."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # pyright: ignore[reportUnknownVariableType]
    inside: int = 0
    before: tuple[bool, bool] = (False, False)


_plain = _Plain()
