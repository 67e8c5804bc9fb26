"""How a device computes: float32 without shortcuts, and whether it has instructions for narrower numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

import torch


def lacks_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device imitates a dtype, which is right and many times as slow as float32.

    Args:
        dtype: float32, bfloat16 or float16.
        device: of the CPUs those without AVX-512 or the like; a GPU that lacks them is not known to torch.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return False
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    known = getattr(torch.ops.mkldnn, asked, None)  # oneDNN's own answer
    return known is not None and not known()


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
