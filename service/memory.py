"""How many cores and how much memory there are to plan with, and how freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 1 << 30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MAPPED = 1 << 24
"""Bytes from which on a piece is a mapping of its own, gone from the process when it is freed: more than most pictures
take, for which new pages each time would cost a third of a decode."""
KEPT = 1 << 25
"""Free bytes at a heap's end that stay for the next picture."""
ARENAS = 2
"""Heaps of all threads, or a quarter of the cores: what one thread has freed another can take; in one of its own it
would stay."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes for materialised views, for tasks' own tensors on the device, and for coded artifacts on the host."""

    slots: int
    overlays: int
    host: int


def cores(limit_file: Path = CPU_LIMIT) -> int:
    """Cores that this process may use: those it is bound to, or fewer where its container has less time.

    Args:
        limit_file: where the container's quota and period stand, in microseconds; it may not be there.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit_file.read_text().split()
    except (OSError, ValueError):
        return bound
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):  # `max`: no limit
        return bound
    return min(bound, math.ceil(int(quota) / int(period)))


def host_memory(limit_file: Path = CGROUP_LIMIT) -> int:
    """Bytes of memory that this process may use: the machine's, or its container's where that is less.

    Args:
        limit_file: where the container's limit stands; it may not be there.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = limit_file.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def plan(device: torch.device) -> Plan:
    """A sensible plan where the user gives none: a quarter of the memory for views, at most 8 GiB on a CPU.

    Args:
        device: where views live.
    """
    host = host_memory()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Plan(slots=free // 2, overlays=free // 8, host=host // 4)
    return Plan(slots=min(host // 4, 8 * GIB), overlays=min(host // 16, 2 * GIB), host=min(host // 8, 4 * GIB))


def return_freed() -> bool:
    """Let the C library keep little memory that was freed, in few heaps; whether it could be told (glibc).

    Left alone, glibc moves the size from which on a piece is mapped by itself up to the largest that was ever freed,
    32 MB at most: what a start or a registration needs for a moment then stays in the heap for good. What the
    environment says of it (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_ARENA_MAX`) stands.
    """
    told = {
        "MALLOC_MMAP_THRESHOLD_": (M_MMAP_THRESHOLD, MAPPED),
        "MALLOC_TRIM_THRESHOLD_": (M_TRIM_THRESHOLD, KEPT),
        "MALLOC_ARENA_MAX": (M_ARENA_MAX, max(ARENAS, cores() // 4)),
    }
    mallopt = _of_the_c_library("mallopt")
    if mallopt is None:
        return False
    taken = [mallopt(*what) for name, what in told.items() if name not in os.environ]
    return all(taken)


def trim() -> None:
    """Give free pages of the heap back, where the C library can (glibc)."""
    malloc_trim = _of_the_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def _of_the_c_library(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:  # a Python that is linked statically
        return None
