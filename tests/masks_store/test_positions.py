"""Reading and writing what a mask says, against torch's own indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from masks_store import chosen, positions, put

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(max_dims=4, min_side=0, max_side=5)).map(torch.from_numpy)


@given(MASKS)
def test_positions_are_the_places_of_the_ones_row_major(mask: torch.Tensor) -> None:
    expected = [place for place, bit in enumerate(mask.reshape(-1).tolist()) if bit]
    assert positions(mask).tolist() == expected
    assert positions(mask).dtype == torch.int64


@given(MASKS)
def test_positions_of_a_mask_that_lies_otherwise_are_row_major_too(mask: torch.Tensor) -> None:
    turned = mask.permute(*reversed(range(mask.dim())))
    assert positions(turned).tolist() == positions(turned.contiguous()).tolist()


@given(MASKS, st.sampled_from([torch.float32, torch.bfloat16, torch.bool]))
def test_put_writes_there_and_nowhere_else(mask: torch.Tensor, dtype: torch.dtype) -> None:
    before = torch.arange(mask.numel()).view(mask.shape).to(dtype)
    values = torch.arange(int(mask.sum())) + 100.0
    into = before.clone()
    put(into, positions(mask), values)
    expected = before.clone()
    expected[mask] = values.to(dtype)
    assert torch.equal(into, expected)


@given(MASKS, st.data())
def test_chosen_are_the_same_bits_where_the_mask_is_set_and_plus_zero_elsewhere(
    mask: torch.Tensor, data: st.DataObject
) -> None:
    """Whatever the numbers: NaN, infinity and -0.0 too."""
    numbers = data.draw(arrays.arrays(np.float32, tuple(mask.shape)))
    values = torch.from_numpy(numbers)
    found = chosen(values, mask)
    assert torch.equal(found.view(torch.int32), torch.where(mask, values, 0.0).view(torch.int32))
    assert found.shape == mask.shape
    assert np.array_equal(values.numpy(), numbers, equal_nan=True)


def test_put_never_writes_into_a_copy() -> None:
    with pytest.raises(RuntimeError, match="view"):
        put(torch.zeros(2, 3).T, torch.tensor([0]), torch.tensor([1.0]))
