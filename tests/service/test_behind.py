"""What each row has behind a layer: in C for every kind of processor, and in torch, it is what a slow twin gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.behind import Behind, Mix, NormTensors, behind_compiled, behind_in_torch, table_of
from service.engine.compiled import LEVELS, Compiled

from ..reference import behind as twin
from ..reference.behind import Own
from . import native

EPS = 1e-5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""What one rounding to the dtype, and for float32 some more, may be off by."""


@dataclass(frozen=True)
class Case:
    """One call."""

    y: Tensor
    parts: list[tuple[int, int, Own]]
    add: Tensor | None
    act: str | None
    fresh: bool
    threads: int

    @property
    def shared_bias(self) -> Tensor | None:
        """What torch's way expects in y already."""
        first = self.parts[0][2].bias
        return first if all(own.bias is first for _, _, own in self.parts) else None

    def expected(self) -> tuple[Tensor, Tensor]:
        y = self.y.view(*self.y.shape, 1, 1) if self.y.dim() == 2 else self.y
        add = self.add.view(*self.add.shape, 1, 1) if self.add is not None and self.add.dim() == 2 else self.add
        owns = [own for start, stop, own in self.parts for _ in range(start, stop)]
        out, size = twin.behind(y, owns, add, self.act, EPS)
        return out.view(*out.shape[: self.y.dim()]), size.view(*out.shape[: self.y.dim()])


def folded(own: Own) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if own.norm is None else NormTensors(*own.norm).folded(EPS)


def for_c(own: Own) -> Behind:
    return Behind(table=table_of(own.bias, own.taps, *folded(own)))


def for_torch(own: Own, bias: Tensor | None, dtype: torch.dtype) -> Behind:
    scale, shift = folded(own)
    if own.taps is None:
        return Behind(bias, norm=None if own.norm is None else NormTensors(*own.norm), eps=EPS)
    taps = own.taps if scale is None else own.taps * scale.view(-1, 1, 1, 1)
    return Behind(bias, taps.to(dtype), None if shift is None else shift.to(dtype))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any number of channels, pictures of one pixel, one line or one column, one row or several, any mix of tasks."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    channels = draw(st.sampled_from([1, 3, 4, 8, 13, 16, 24, 33, 64, 70, 128]))
    counts = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    flat = draw(st.booleans()) and draw(st.booleans())
    shape = (
        (sum(counts), channels) if flat else (sum(counts), channels, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    )

    def number(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def activations() -> Tensor:
        x = number(*shape).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and draw(st.booleans()) else x

    shared = number(channels) if draw(st.booleans()) else None
    parts: list[tuple[int, int, Own]] = []
    for count in counts:
        bias = number(channels) if draw(st.booleans()) else shared
        taps = number(channels, 1, 3, 3) if draw(st.booleans()) else None
        norm = torch.cat([number(3, channels), number(1, channels).abs() + 0.5]) if draw(st.booleans()) else None
        start = parts[-1][1] if parts else 0
        parts.append((start, start + count, Own(bias, taps, norm)))
    add = draw(st.sampled_from(["none", "same", "one number"]))
    added = {"none": None, "same": activations(), "one number": number(1, *(1,) * (len(shape) - 1)).to(dtype)}[add]
    act = draw(st.sampled_from([None, "relu", "relu6"]))
    return Case(activations(), parts, added, act, draw(st.booleans()), draw(st.integers(1, 2)))


@settings(max_examples=200, deadline=None)
@given(case=cases(), level=st.integers(0, len(LEVELS) - 1))
def test_c_gives_what_the_twin_gives_rounded_once(library: Compiled, case: Case, level: int) -> None:
    expected, size = case.expected()
    own = replace(library, level=min(level, library.level))
    y, add = case.y.clone(), None if case.add is None else case.add.clone()
    mix = Mix([(start, stop, for_c(own)) for start, stop, own in case.parts])
    got = behind_compiled(own, y, mix, add, case.act, fresh=case.fresh, threads=case.threads)
    assert got.dtype == case.y.dtype
    rounded = ROUNDING[got.dtype] * expected.abs() if got.dtype == torch.bfloat16 else 0.0
    if case.add is not None and case.add.shape != case.y.shape:  # two operators, each rounds
        rounded = 2 * ROUNDING[got.dtype] * size
    assert bool(((got.double() - expected).abs() <= rounded + ROUNDING[torch.float32] * size).all())
    assert case.fresh or torch.equal(y, case.y), "y is not ours to write over"
    assert add is None or torch.equal(add, case.add), "add is not ours to write over"


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_torch_gives_what_the_twin_gives(case: Case) -> None:
    if case.y.dim() == 2:
        case = replace(case, parts=[(start, stop, replace(own, taps=None)) for start, stop, own in case.parts])
    expected, size = case.expected()
    narrow = {id(own.bias): None if own.bias is None else own.bias.to(case.y.dtype) for *_, own in case.parts}
    parts = [(start, stop, for_torch(own, narrow[id(own.bias)], case.y.dtype)) for start, stop, own in case.parts]
    y = case.y.clone()
    if case.shared_bias is not None:
        y = (y.double() + case.shared_bias.double().view(1, -1, *(1,) * (y.dim() - 2))).to(y.dtype)
    got = behind_in_torch(y, Mix(parts), case.add, case.act)
    bound = 4 * ROUNDING[got.dtype] * size  # bias, taps and shift are rounded, and what every operator gives
    assert bool(((got.double() - expected).abs() <= bound).all())


def test_what_is_not_a_number_stays_so_and_infinity_is_held_at_the_bounds(library: Compiled) -> None:
    own = Behind(table=table_of(None, None, torch.ones(3), None))
    for dtype in (torch.float32, torch.bfloat16):
        for level in range(library.level + 1):
            y = torch.tensor([[float("nan"), float("inf"), -float("inf")]]).to(dtype)
            got = behind_compiled(replace(library, level=level), y, Mix([(0, 1, own)]), None, "relu6")
            assert got.isnan().tolist() == [[True, False, False]]
            assert got[0, 1:].tolist() == [6.0, 0.0]


def test_bfloat16_is_rounded_to_nearest_and_ties_to_even(library: Compiled) -> None:
    """Every number of 17 bits between 1 and 4, so that every second one lies in the middle of two."""
    exact = torch.arange(0x3F8000, 0x408000, dtype=torch.int32).bitwise_left_shift(8).view(torch.float32)
    halves = (exact.view(torch.int32) & 0xFFFF0000 - (1 << 32)).view(torch.float32)  # what bfloat16 holds of it
    table = table_of(None, None, torch.ones(len(exact)), exact - halves)  # halves + the rest
    for level in range(library.level + 1):
        y = halves.to(torch.bfloat16)[None]
        got = behind_compiled(replace(library, level=level), y, Mix([(0, 1, Behind(table=table))]))
        assert torch.equal(got[0], exact.to(torch.bfloat16))


def test_threads_and_parts_change_no_bit(library: Compiled) -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.randn((3, 200, 9, 9), generator=random).contiguous(memory_format=torch.channels_last)
    owns = [Own(taps=torch.randn((200, 1, 3, 3), generator=random)), Own(norm=torch.rand((4, 200), generator=random))]
    mix = Mix([(0, 2, for_c(owns[0])), (2, 3, for_c(owns[1]))])
    alone = behind_compiled(library, y.clone(), mix, y, "relu", threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(behind_compiled(library, y.clone(), mix, y, "relu", threads=threads), alone)


@pytest.mark.parametrize("channels", [8, 24])
def test_a_table_of_other_channels_is_refused(library: Compiled, channels: int) -> None:
    mix = Mix([(0, 1, Behind(table=table_of(torch.zeros(64), None, None, None)))])
    with pytest.raises(AssertionError):
        behind_compiled(library, torch.zeros(1, channels, 2, 2), mix)


@pytest.mark.slow
def test_c_keeps_within_its_memory_for_every_shape_alias_and_number_of_threads(tmp_path: Path) -> None:
    """In memory of the exact length, watched by the compiler's sanitizers."""
    native.run_guarded("guarded.c", tmp_path / "guarded", 3000)
