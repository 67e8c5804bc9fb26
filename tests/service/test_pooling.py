"""The C functions for pooling and pixels give torch's bits, on every kind of processor that this one can stand for."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from masks_store import Preprocess
from service.engine.compiled import Compiled
from service.engine.pixels import normalised, numbers_compiled, numbers_of
from service.engine.pooling import max_pool, max_pool_compiled
from service.engine.program import MaxPool

from . import native

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
CHANNELS = [1, 3, 16, 63, 64, 65, 130]
PREPROCESS = Preprocess(resize=8, size=8, mean=(0.1, 0.5, 0.9), std=(0.2, 1.0, 0.003))


def bits(tensor: Tensor) -> Tensor:
    """Row-major; of NaN only that it is one."""
    whole = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    return torch.where(tensor.isnan(), torch.zeros_like(tensor), tensor).contiguous().view(whole)


@settings(deadline=None, max_examples=80)
@given(
    dtype=DTYPES,
    shape=st.tuples(
        st.integers(1, 3), st.sampled_from([1, 3, 16, 63, 64, 65, 130]), st.integers(1, 9), st.integers(1, 9)
    ),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    threads=st.sampled_from([1, 2]),
    level=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_pooling_in_c_gives_torch_s_bits(
    library: Compiled,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    threads: int,
    level: int,
    seed: int,
) -> None:
    sides = list(zip(shape[2:], kernel, padding, strict=True))
    assume(all(2 * pad <= size and side + 2 * pad >= size for side, size, pad in sides))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
    places = torch.rand(shape, generator=generator) < 0.1
    drawn = special[torch.randint(0, len(special), shape, generator=generator)].to(dtype)
    x = torch.where(places, drawn, x).contiguous(memory_format=torch.channels_last)
    lower = dataclasses.replace(library, level=min(level, library.level))
    found = max_pool_compiled(lower, x, MaxPool(0, 1, kernel, stride, padding), threads=threads)
    expected = F.max_pool2d(x, kernel, stride, padding)
    assert found.isnan().equal(expected.isnan())
    assert (found + 0.0).masked_fill(found.isnan(), 0.0).equal((expected + 0.0).masked_fill(expected.isnan(), 0.0))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_no_memory_is_touched_beside_what_is_given(tmp_path: Path) -> None:
    native.run_guarded("guarded_pooling.c", tmp_path / "guarded", 3000, "behind.c")


@pytest.mark.parametrize(("kernel", "padding"), [((2, 2), (2, 0)), ((9, 9), (0, 0))])
def test_windows_that_do_not_fit_are_refused(
    library: Compiled, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    x = torch.zeros(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="do not fit"):
        max_pool_compiled(library, x, MaxPool(0, 1, kernel, (1, 1), padding))


@pytest.mark.parametrize("x", [torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6, dtype=torch.float64)])
def test_what_lies_otherwise_is_pooled_by_torch(x: Tensor) -> None:
    assert max_pool(x, MaxPool(0, 1, (3, 3), (2, 2), (1, 1))).equal(F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_of_a_pixel_becomes_torch_s_bits(library: Compiled, dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(2, 16, 8, 3)
    pixels = torch.cat([pixels, torch.randint(0, 256, pixels.shape, dtype=torch.uint8)])
    expected = normalised(pixels, PREPROCESS, dtype)
    for numbers in (partial(numbers_compiled, library), numbers_of):
        found = numbers(pixels, PREPROCESS, dtype)  # until the next call
        assert found.dtype == dtype
        assert bits(found).equal(bits(expected))
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_pixels_that_do_not_lie_in_one_row_are_read_as_they_are(library: Compiled) -> None:
    pixels = torch.randint(0, 256, (3, 10, 12, 3), dtype=torch.uint8)[:, 1:9, 2:10]
    found = numbers_compiled(library, pixels, PREPROCESS, torch.float32)
    assert found.equal(normalised(pixels, PREPROCESS, torch.float32))
