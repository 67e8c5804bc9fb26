"""float32 without shortcuts, and what a processor has no instructions for."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from masks_store import lacks_instructions, plain_arithmetic

from .. import tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CPUINFO = Path("/proc/cpuinfo")


def test_a_thread_that_ends_first_leaves_tf32_off_for_the_others() -> None:
    was = tf32.switches()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        first, second = plain_arithmetic(), plain_arithmetic()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        during = tf32.switches()
        second.__exit__(None, None, None)
        after = tf32.switches()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was
    assert (during, after) == ((False, False), (True, True))


@pytest.mark.skipif(
    not CPUINFO.exists() or platform.machine() != "x86_64", reason="needs Linux's word on the processor"
)
def test_narrow_numbers_are_known_to_be_missing_where_the_processor_says_so() -> None:
    flags = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split()
    assert lacks_instructions(torch.bfloat16, CPU) is not bool({"avx512_bf16", "amx_bf16"} & set(flags))
    assert lacks_instructions(torch.float16, CPU) is not bool({"avx512_fp16", "amx_fp16"} & set(flags))


def test_nothing_lacks_float32_and_of_a_gpu_nothing_is_said() -> None:
    assert not lacks_instructions(torch.float32, CPU)
    assert not any(lacks_instructions(dtype, GPU) for dtype in (torch.bfloat16, torch.float16))
