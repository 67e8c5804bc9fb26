"""How many threads the CPU arithmetic takes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch


@contextlib.contextmanager
def threads(count: int | None) -> Generator[None]:
    """Run the block with so many threads of CPU arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
