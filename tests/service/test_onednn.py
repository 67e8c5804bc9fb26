"""Convolutions by oneDNN's own interface: what a slow twin in float64 gives, from one order for every size of batch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from service.engine import onednn
from service.engine.onednn import PLANNED, Geometry, Laid, Order, Refused, convolve, geometry_of
from service.engine.program import Conv
from service.engine.threads import computing_in

from ..processor import HAS_BF16, ONEDNN_DTYPES, bf16
from . import native

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""What one rounding to the dtype, and for float32 some more, may be off by."""


@pytest.fixture(autouse=True)
def there() -> None:
    library, why = onednn.found()
    if library is None:
        pytest.skip(why)


def order_of(geometry: Geometry) -> Order:
    library, _ = onednn.found()
    assert library is not None
    return Order(library, geometry)


@dataclass(frozen=True)
class Case:
    """One convolution, with all that may come behind it."""

    geometry: Geometry
    batch: int
    biased: bool
    added: bool
    act: str | None
    reuse: bool
    threads: int
    seed: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        random = torch.Generator().manual_seed(self.seed)
        shape, dtype = self.geometry.shape, self.geometry.dtype
        x = torch.randn((self.batch, shape[1] * self.geometry.groups, *self.geometry.size), generator=random).to(dtype)
        weight = torch.randn(shape, generator=random).to(dtype)
        bias = torch.randn(shape[0], generator=random).to(dtype) if self.biased else None
        add = torch.randn(self.geometry.result(self.batch), generator=random).to(dtype) if self.added else None
        order = torch.channels_last if self.reuse else torch.contiguous_format
        return x, weight, bias, None if add is None else add.contiguous(memory_format=order)

    def expected(self) -> tuple[Tensor, Tensor]:
        """In float64: (the result, the sum of the magnitudes of all that is added up for each number)."""
        x, weight, bias, add = self.tensors()
        g = self.geometry

        def conv(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
            bias = None if bias is None else bias.double()
            y = F.conv2d(x.double(), weight.double(), bias, g.stride, g.padding, g.dilation, g.groups)
            return y if add is None else y + add.double()

        out, size = conv(x, weight, bias, add), conv(*(None if t is None else t.abs() for t in (x, weight, bias, add)))
        return (out if self.act is None else out.clamp(0.0, 6.0 if self.act == "relu6" else None)), size

    def got(self) -> Tensor:
        x, weight, bias, add = self.tensors()
        order = order_of(self.geometry)
        with computing_in(self.threads):
            return convolve(x, Laid(order.arranged(weight), order), bias, add, self.act, reuse=self.reuse)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Convolutions as networks have them. In others oneDNN itself errs, in torch's own convolution as well: in bfloat16
    where a result is one number wide without padding, or a group is of one channel to many.
    """
    kernel, dilation = draw(st.sampled_from([1, 2, 3, 5, 7])), draw(st.sampled_from([1, 1, 2]))
    reach = dilation * (kernel - 1) + 1
    padding, stride = draw(st.integers(0, reach // 2)), draw(st.integers(1, 3))
    channels = [(1, 3, 1), (16, 16, 1), (17, 33, 1), (64, 3, 1), (70, 64, 1), (8, 8, 4), (1, 1, 24)]
    o, i, groups = draw(st.sampled_from(channels))
    whole = Geometry(
        (o * groups, i, kernel, kernel),
        (draw(st.integers(reach + stride, reach + 9)), draw(st.integers(reach + stride, reach + 9))),
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        groups,
        draw(st.sampled_from(ONEDNN_DTYPES)),
    )
    flags = st.booleans()
    return Case(
        whole,
        draw(st.sampled_from([1, 2, 8, 9])),
        draw(flags),
        draw(flags),
        draw(st.sampled_from([None, "relu", "relu6"])),
        draw(flags),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(0, 99)),
    )


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_a_convolution_and_all_behind_it_is_what_float64_gives(case: Case) -> None:
    got = case.got()
    expected, size = case.expected()
    assert got.shape == expected.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    # numbers: a float32 sum of so many, and one rounding to the dtype
    bound = ROUNDING[case.geometry.dtype] * expected.abs() + 2e-6 * size
    if case.added:  # oneDNN may round to the dtype before it adds
        bound += ROUNDING[case.geometry.dtype] * size
    assert bool(((got.double() - expected).abs() <= bound).all()), repr(vars(case))


LAYERS = [(1024, 256, 1, 14), (512, 1024, 1, 14), (256, 128, 3, 28), (64, 64, 3, 56), (64, 3, 7, 64)]
"""Output channels, input channels, kernel, size; for some oneDNN is known to want other orders for other batches."""


def geometry(layer: tuple[int, int, int, int], dtype: torch.dtype) -> Geometry:
    o, i, kernel, side = layer
    pads = (kernel // 2, kernel // 2)
    return Geometry((o, i, kernel, kernel), (side, side), (1, 1), pads, (1, 1), 1, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, bf16])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_single_picture_s_weight_is_never_brought_into_another_order(
    layer: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """That would take many times as long as computing with it."""
    order = order_of(geometry(layer, dtype))
    assert not order.plan((1, layer[3], layer[3])).moves


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("layer", [*LAYERS, *((c, c, 3, side) for c, side in ((128, 28), (256, 14), (512, 7)))])
def test_nor_is_it_for_more_threads_than_the_order_was_made_for(layer: tuple[int, int, int, int], threads: int) -> None:
    """They may want another order than one thread does: then fewer compute."""
    whole = geometry(layer, torch.float32)
    order = order_of(whole)
    random = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn((1, whole.shape[1], *whole.size), generator=random),
        torch.randn(whole.shape, generator=random),
    )
    laid = Laid(order.arranged(weight), order)
    alone = convolve(x, laid, None, None, None)
    with computing_in(threads):
        assert not order.plan((1, *whole.size)).moves
        got = convolve(x, laid, None, None, None)
        assert torch.get_num_threads() == threads
    assert torch.allclose(got, alone, rtol=1e-5, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, bf16])
def test_an_order_that_a_batch_does_not_want_is_brought_into_one_that_it_does(dtype: torch.dtype) -> None:
    """A weight laid for another size of picture and read by a batch: all sizes of batch give the same numbers."""
    whole = geometry((64, 32, 3, 9), dtype)
    order = order_of(whole)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(whole.shape, generator=random).to(dtype)
    laid = Laid(order.arranged(weight), order)
    for batch, side in [(1, 9), (3, 9), (64, 9), (2, 40), (1, 3)]:
        x = torch.randn((batch, 32, side, side), generator=random).to(dtype)
        expected = F.conv2d(x.double(), weight.double(), padding=1)
        got = convolve(x, laid, None, None, None).double()
        bound = ROUNDING[dtype] * expected.abs() + 1e-6 * float(expected.abs().max())
        assert bool(((got - expected).abs() <= bound).all()), (batch, side)


@settings(deadline=None, max_examples=20)
@given(case=cases())
def test_a_weight_comes_back_bit_for_bit(case: Case) -> None:
    _, weight, _, _ = case.tensors()
    order = order_of(case.geometry)
    held = order.arranged(weight)
    assert len(held) == order.length >= weight.numel()
    assert order.restored(held).equal(weight)
    assert int((held != 0).sum()) == int((weight != 0).sum())


def test_threads_that_compute_at_once_give_what_one_gives() -> None:
    whole = geometry((64, 64, 3, 14), torch.float32)
    order = order_of(whole)
    random = torch.Generator().manual_seed(0)
    laid = Laid(order.arranged(torch.randn(whole.shape, generator=random)), order)
    images = [torch.randn((1 + i % 3, 64, 14, 14), generator=random) for i in range(8)]
    with computing_in(1):
        alone = [convolve(x, laid, None, None, "relu") for x in images]

    def one(x: Tensor) -> list[Tensor]:
        with computing_in(1):
            return [convolve(x, laid, None, None, "relu") for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(alone, pool.map(one, images), strict=True):
            assert all(got.equal(expected) for got in found)


def test_no_more_plans_are_kept_than_is_said_and_a_forgotten_one_is_made_again() -> None:
    order = order_of(geometry((16, 16, 1, 4), torch.float32))
    first = order.plan((1, 4, 4))
    assert order.plan((1, 4, 4)) is first
    for batch in range(2, 2 + PLANNED):
        order.plan((batch, 4, 4))
    assert order.plan((1, 4, 4)) is not first


@pytest.mark.skipif(HAS_BF16, reason="oneDNN convolves bfloat16 here")
@pytest.mark.parametrize("layer", LAYERS)
def test_what_onednn_does_not_convolve_is_refused(layer: tuple[int, int, int, int]) -> None:
    with pytest.raises(Refused, match="oneDNN does not compute"):
        order_of(geometry(layer, torch.bfloat16))


def test_a_padding_that_is_named_is_refused() -> None:
    conv = Conv(0, 1, "c", "c.weight", None, (1, 1), "same", (1, 1), 1, None)
    with pytest.raises(Refused, match="numbers for padding"):
        geometry_of(conv, (1, 1, 3, 3), (8, 8), torch.float32)


def test_without_torch_s_library_the_functions_say_why_there_are_none(tmp_path: Path) -> None:
    made = native.build(tmp_path / "native.so")
    code = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).taskpack_onednn; f.restype = ctypes.c_char_p;"
        "print(f((ctypes.c_int64 * 3)()).decode())"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() in (
        "torch's library is not loaded",
        "oneDNN's functions are found on 64-bit Linux only",
    )


@pytest.mark.slow
def test_a_damaged_library_is_read_no_further_than_it_reaches(tmp_path: Path) -> None:
    native.run_guarded("guarded_symbols.c", tmp_path / "guarded", 20000, flags=["-Wl,--export-dynamic"])
