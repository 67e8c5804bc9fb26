"""The plan fits the machine, and the container where that is smaller."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.memory import ARENAS, GIB, cores, host_memory, plan


@pytest.mark.parametrize("text", ["max\n", "not a number\n", str(1 << 62)])
def test_without_a_limit_the_memory_is_the_machine_s(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text)
    kib = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert host_memory(tmp_path / "memory.max") == host_memory(tmp_path / "missing") == kib * 1024


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    assert host_memory(tmp_path / "memory.max") == 1 << 20


@pytest.mark.parametrize(
    "text",
    ["max 100000\n", "", "100000\n", "no number\n", "0 100000\n", "100000 0\n", "-1 100000\n", f"{1 << 40} 100000\n"],
)
def test_without_a_limit_the_cores_are_those_the_process_is_bound_to(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores(tmp_path / "cpu.max") == cores(tmp_path / "missing") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("text", "most"), [("100000 100000\n", 1), ("150000 100000\n", 2), ("5000 100000\n", 1)])
def test_a_container_s_share_of_the_processors_counts_and_part_of_one_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, most: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert cores(tmp_path / "cpu.max") == most


def test_all_that_is_planned_leaves_half_of_the_memory_free() -> None:
    planned = plan(torch.device("cpu"))
    assert min(planned.slots, planned.overlays, planned.host) > 0
    assert planned.slots + planned.overlays + planned.host < host_memory() / 2
    assert planned.slots <= 8 * GIB


MAPPED_AFTER_A_LARGER_PIECE_WAS_FREED = """
import ctypes, sys
from service.memory import return_freed, trim

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Info
told = sys.argv[1] == "told" and return_freed()
libc.free(libc.malloc(31 << 20))  # from here on glibc, left alone, takes 20 MiB from the heap
before = libc.mallinfo2().hblkhd
piece = libc.malloc(20 << 20)
mapped = libc.mallinfo2().hblkhd - before
libc.free(piece)
trim()
print(told, mapped >= 20 << 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such setting")
@pytest.mark.parametrize(("way", "said"), [("told", "True True"), ("left alone", "False False")])
def test_a_large_piece_is_a_mapping_of_its_own_whatever_was_freed_before(way: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAPPED_AFTER_A_LARGER_PIECE_WAS_FREED, way], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == said


GIVEN_BACK = """
import ctypes, sys
from service.memory import trim

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pieces = [libc.malloc(1 << 16) for _ in range(1600)]  # 100 MB in pieces that are never mapped by themselves
for piece in pieces:
    ctypes.memset(piece, 1, 1 << 16)
for piece in pieces[:-1]:
    libc.free(piece)  # the last one holds the heap's end
before = resident()
if sys.argv[1] == "trim":
    trim()
print(before - resident() > 80 << 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such function")
@pytest.mark.parametrize(("way", "said"), [("trim", "True"), ("left alone", "False")])
def test_what_was_freed_below_a_piece_in_use_is_given_back(way: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK, way], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


HEAPS_OF_EIGHT_THREADS = """
import ctypes, sys, tempfile, threading
from service.memory import return_freed

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.fopen.restype = libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "told":
    return_freed()
together = threading.Barrier(8)

def take():
    piece = libc.malloc(1 << 16)
    together.wait()
    libc.free(piece)

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such function")
def test_threads_share_a_few_heaps() -> None:
    heaps = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", HEAPS_OF_EIGHT_THREADS, way],
                capture_output=True,
                text=True,
                check=True,
                env={name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))},
            ).stdout
        )
        for way in ("told", "left alone")
    }
    assert heaps["told"] <= max(ARENAS, cores() // 4)
    assert heaps["left alone"] > ARENAS
