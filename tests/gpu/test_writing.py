"""A view written in one launch has the bits of the slow clear twin; on the CPU Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.blocks import BLOCK, blocks_of
from service.engine.layout import Layout, Weights, layout_of

from ..service.test_masking import twin

pytest.importorskip("triton")
from service.engine.gpu.masking import write_view

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Shape = tuple[int, ...]


def layout_for(shapes: list[Shape], dtype: str) -> Layout:
    named = {f"layer{i}.weight": torch.Size(shape) for i, shape in enumerate(shapes)}
    return layout_of(named, {}, {}, dtype, DEVICE, onednn=False)


def random_view(layout: Layout, seed: int, masked: bool) -> tuple[Weights, dict[str, Tensor]]:
    """Weights, and a mask that hides NaN, infinity and negative zeros among them, where it is used."""
    random = torch.Generator().manual_seed(seed)
    source, mask = layout.new(), dict[str, Tensor]()
    for name, place in layout.places.items():
        weight, shown = torch.randn(place.shape, generator=random), torch.rand(place.shape, generator=random) < 0.5
        for value in (float("nan"), float("inf"), -0.0, -1.0):
            hidden = (~shown).nonzero()
            if masked and len(hidden):
                weight[tuple(hidden[int(torch.randint(len(hidden), (1,), generator=random))])] = value
        source.memory[name].copy_(place.arranged(weight))
        mask[name] = shown
    return source, mask


SHAPES: list[Shape] = [(3, 2, 3, 3), (64, 3, 7, 7), (5, 1, 3, 3), (70, 9), (1, 1), (8, 16, 1, 1), (130, 65)]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@example([(3, 2, 3, 3), (33, 3, 7, 7), (5, 1, 3, 3)], 0).via("a layer of several blocks between small ones")
@settings(max_examples=3, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([s for s in SHAPES if s[0] < 10]), min_size=1, max_size=4), seed=st.integers(0, 9)
)
def test_one_launch_writes_the_bits_of_the_twin(
    dtype: str, masked: bool, scaled: bool, shapes: list[Shape], seed: int
) -> None:
    layout = layout_for(shapes, dtype)
    source, mask = random_view(layout, seed, masked)
    channels = [shape[0] for shape in shapes]
    table = torch.randn(sum(channels), generator=torch.Generator().manual_seed(seed)) if scaled else None
    bits, blocks, out = layout.bits(mask) if masked else None, blocks_of(layout), layout.new()
    assert blocks is not None
    assert out.flat is not None
    assert source.flat is not None
    out.flat.fill_(7.0)
    write_view(out.flat, source.flat, bits, None if table is None else table.to(DEVICE), blocks)
    first = 0
    for name, place in layout.places.items():
        shown = (place.arranged(mask[name].float()) != 0).cpu().numpy() if masked else None
        scale = None if table is None else table[first : first + place.shape[0], None]
        expected = twin(source.memory[name].cpu(), shown, scale)
        assert out.memory[name].cpu().view(torch.uint8).tolist() == expected.view(torch.uint8).tolist(), name
        end = layout.offsets[name] + place.length
        assert not out.flat[end : end + -place.length % 64].any(), "the zeros behind a layer stay"
        first += place.shape[0]


def test_no_block_has_positions_of_two_layers_and_every_position_has_its_channel() -> None:
    layout = layout_for(SHAPES, "fp32")
    blocks = blocks_of(layout)
    assert blocks is not None
    owner = torch.full((layout.total,), -1)
    first = 0
    for name, place in layout.places.items():
        at = layout.offsets[name]
        owner[at : at + place.length] = first + torch.arange(place.shape[0]).repeat_interleave(place.shape[1:].numel())
        first += place.shape[0]
    covered = 0
    for start, stop, into, reciprocal, begins, last in blocks.tolist():
        assert start == covered
        assert start % 64 == stop % 64 == 0
        assert stop - start <= BLOCK
        covered = stop
        found = torch.clamp(begins + ((into + torch.arange(stop - start)) * reciprocal >> 32), max=last)
        known = owner[start:stop] >= 0
        assert torch.equal(found[known], owner[start:stop][known])
    assert covered == layout.total


@pytest.mark.parametrize("span", [1, 2, 7, 9, 27, 147, 576, 4608, 25088, 60000])
def test_the_reciprocal_divides_exactly_wherever_a_block_may_stand(span: int) -> None:
    layout = layout_for([(2, span)], "bf16")
    blocks = blocks_of(layout)
    assert blocks is not None
    reciprocal, numbers = int(blocks[0, 3]), torch.arange(span + BLOCK)
    assert torch.equal((numbers * reciprocal) >> 32, numbers // span)


def test_a_layer_too_wide_for_the_reciprocal_is_refused() -> None:
    assert blocks_of(layout_for([(1, 150528)], "bf16")) is None
