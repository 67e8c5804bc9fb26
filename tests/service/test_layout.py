"""Where the shared weights lie: oneDNN's order keeps each channel apart, and a weight comes back from it."""

from __future__ import annotations

import pytest
import torch

from service.engine.layout import (
    DTYPES,
    Layout,
    OneDNN,
    Place,
    computing_in,
    layout_of,
    memory_of,
    onednn_place,
    own_key,
    own_weights,
    plain_place,
    reordered,
)
from service.engine.program import Conv

SIZE = (8, 8)
GEOMETRIES = [(300, 2, 1, 1), (20, 3, 3, 1), (65, 5, 3, 1), (48, 1, 3, 48), (16, 4, 3, 4)]
"""Output channels (over 256: more than bfloat16 counts), input channels of a group, kernel, groups."""


def conv(kernel: int = 1, groups: int = 1) -> Conv:
    return Conv(0, 1, "conv", "conv.weight", None, (1, 1), (kernel // 2, kernel // 2), (1, 1), groups, None)


def place_of(dtype: str, o: int, i: int, kernel: int, groups: int) -> Place:
    place = onednn_place(conv(kernel, groups), torch.Size((o, i, kernel, kernel)), DTYPES[dtype], SIZE)
    if place is None:
        pytest.skip("oneDNN's order cannot be used on this processor")
    return place


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_position_is_of_the_channel_that_its_pattern_names(geometry: tuple[int, ...], dtype: str) -> None:
    """One channel after the other is laid alone."""
    place = place_of(dtype, *geometry)
    position, span = torch.arange(place.length), place.length // len(place.channels)
    channels = place.channels[position // span, position % span % place.channels.shape[1]]
    for channel in range(place.shape[0]):
        weight = torch.zeros(place.shape)
        weight[channel] = 1.0
        held = place.arranged(weight) != 0
        assert int(held.sum()) == weight[channel].numel()
        assert set(channels[held].tolist()) == {channel}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_layer_lies_in_an_order_that_a_single_picture_does_not_want(dtype: str, threads: int) -> None:
    """Layers of ResNets for which oneDNN is known to want another order for one picture, and one of the usual kind."""
    layers = [(1024, 256, 1, 14), (512, 1024, 1, 14), (256, 128, 3, 28), (64, 64, 3, 56)]
    convs = {str(layer): conv(layer[2]) for layer in layers}
    shapes = {str((o, i, k, side)): torch.Size((o, i, k, k)) for o, i, k, side in layers}
    sizes = {str(layer): (layer[3], layer[3]) for layer in layers}
    before = torch.get_num_threads()
    layout = layout_of(shapes, convs, sizes, dtype, torch.device("cpu"), onednn=True, threads=threads)
    assert torch.get_num_threads() == before
    laid = {name: place for name, place in layout.places.items() if isinstance(place, OneDNN)}
    if not laid:
        pytest.skip("oneDNN's order cannot be used on this processor")
    for name, place in laid.items():
        weight = torch.rand(place.shape)
        with computing_in(threads):
            alone = reordered(weight.to(place.dtype), convs[name], sizes[name], batch=1)
        assert torch.equal(memory_of(alone, place.dtype), place.arranged(weight)), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_s_own_smaller_network_counts_the_bytes_that_it_takes(dtype: str) -> None:
    """19 channels are padded to whole blocks."""
    place = place_of(dtype, 64, 33, 3, 1)
    shapes = {"conv.weight": place, "fc.weight": plain_place(torch.Size((4, 5)), place.dtype, place.device)}
    weights = {"conv.weight": torch.rand((19, 33, 3, 3)), "fc.weight": torch.rand((2, 3))}
    layout = Layout(shapes, dict.fromkeys(shapes, 0), 0)
    own = own_weights(own_key(weights, dtype), weights, {"conv.weight": conv(3)}, {"conv.weight": SIZE}, layout)
    held = torch.ops.mkldnn._nbytes(own.tensors["conv.weight"])
    assert own.nbytes == held + 6 * place.dtype.itemsize
    assert held > weights["conv.weight"].numel() * place.dtype.itemsize
