"""Writing a masked layer: C and torch give the same bits, which are those of a slow clear twin."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.compiled import Compiled
from service.engine.masking import write_compiled, write_in_torch


def twin(source: Tensor, shown: np.ndarray | None, scale: Tensor | None) -> Tensor:
    """Number by number."""
    out = torch.zeros_like(source)
    span = len(source) if scale is None else len(source) // len(scale)
    for at in range(len(source)):
        if shown is None or shown[at]:
            factor = torch.tensor(1.0) if scale is None else scale[at // span, at % span % scale.shape[1]]
            out[at] = (source[at].float() * factor).to(source.dtype)
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, np.ndarray | None, Tensor | None]:
    """Numbers, what is shown of them, and their scales: short and long patterns, whole bytes and not."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    blocks, period = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 16, 24, 32, 64]))
    length = blocks * period * draw(st.integers(1, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    source = torch.randn(length, generator=random).to(dtype)
    scale = torch.randn((blocks, period), generator=random) if draw(st.booleans()) else None
    if not draw(st.booleans()):
        return source, None, scale
    shown = torch.rand(length, generator=random).numpy() < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    for value in (float("nan"), float("inf"), -0.0, -1.0):
        hidden = np.flatnonzero(~shown)
        if len(hidden):
            source[int(hidden[int(torch.randint(len(hidden), (1,), generator=random))])] = value
    return source, shown, scale


@settings(max_examples=150, deadline=None)
@given(cases())
def test_c_and_torch_write_the_bits_of_the_twin(
    library: Compiled, case: tuple[Tensor, np.ndarray | None, Tensor | None]
) -> None:
    source, shown, scale = case
    bits = None
    if shown is not None:
        padded = np.zeros(-(-len(shown) // 64) * 64, dtype=bool)
        padded[: len(shown)] = shown
        bits = torch.from_numpy(np.packbits(padded, bitorder="little"))
    expected = twin(source, shown, scale)
    for write in (write_in_torch, lambda *given: write_compiled(library, *given)):
        held = torch.full((len(source) + 64,), 7.0, dtype=source.dtype)
        out, around = held[32:-32], torch.cat([held[:32], held[-32:]])
        write(out, source, bits, scale)
        assert out.contiguous().view(torch.uint8).tolist() == expected.view(torch.uint8).tolist()
        assert torch.equal(torch.cat([held[:32], held[-32:]]), around), "and nothing beside it"


def test_a_layer_of_many_steps_is_written_to_its_end(library: Compiled) -> None:
    random = torch.Generator().manual_seed(0)
    source, scale = torch.randn(27 * 12000, generator=random), torch.randn((12000, 1), generator=random)
    shown = torch.rand(len(source), generator=random).numpy() < 0.5
    bits = torch.from_numpy(np.packbits(shown, bitorder="little"))
    expected = torch.where(torch.from_numpy(shown), (source.view(12000, 27) * scale).view(-1), 0.0)
    for write in (write_in_torch, lambda *given: write_compiled(library, *given)):
        out = torch.full_like(source, 7.0)
        write(out, source, bits, scale)
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32))
