"""How many threads torch, and what counts its threads, computes with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def computing_in(threads: int) -> Generator[None]:
    """Let torch compute in so many threads; their number is this thread's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
