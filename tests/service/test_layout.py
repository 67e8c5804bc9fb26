"""Where the shared weights lie: oneDNN's order keeps each channel apart, and a weight comes back from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from masks_store import positions
from service.engine import onednn, places
from service.engine.layout import DTYPES, Layout, layout_of, own_key, own_weights
from service.engine.places import (
    Ending,
    Opaque,
    Ordered,
    Place,
    computing_in,
    memory_of,
    opaque,
    ordered,
    plain_place,
    reordered,
)
from service.engine.program import Conv

SIZE = (8, 8)
GEOMETRIES = [(300, 2, 1, 1), (20, 3, 3, 1), (65, 5, 3, 1), (48, 1, 3, 48), (96, 1, 3, 96), (16, 4, 3, 4)]
"""Output channels (over 256: more than bfloat16 counts), input channels of a group, kernel, groups."""

ENDINGS: list[Ending] = [(False, "relu"), (False, "relu6"), (True, "relu")]


def conv(kernel: int = 1, groups: int = 1) -> Conv:
    return Conv(0, 1, "conv", "conv.weight", None, (1, 1), (kernel // 2, kernel // 2), (1, 1), groups, None)


WAYS = {"direct": ordered, "torch": opaque}


def place_of(way: str, dtype: str, o: int, i: int, kernel: int, groups: int) -> Place:
    if way == "direct" and onednn.found()[0] is None:
        pytest.skip(onednn.found()[1])
    place = WAYS[way](conv(kernel, groups), torch.Size((o, i, kernel, kernel)), DTYPES[dtype], SIZE, ENDINGS)
    if place is None:
        pytest.skip("oneDNN's order cannot be used on this processor")
    return place


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_position_is_of_the_channel_that_its_pattern_names(
    geometry: tuple[int, ...], dtype: str, way: str
) -> None:
    """One channel after the other is laid alone."""
    place = place_of(way, dtype, *geometry)
    position, span = torch.arange(place.length), place.length // len(place.channels)
    channels = place.channels[position // span, position % span % place.channels.shape[1]]
    for channel in range(place.shape[0]):
        weight = torch.zeros(place.shape)
        weight[channel] = 1.0
        held = place.arranged(weight) != 0
        assert int(held.sum()) == weight[channel].numel()
        assert set(channels[held].tolist()) == {channel}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_weight_comes_back_bit_for_bit(geometry: tuple[int, ...], dtype: str, way: str) -> None:
    place = place_of(way, dtype, *geometry)
    weight = torch.randn(place.shape).to(place.dtype)
    assert place.restored(place.arranged(weight)).equal(weight)


@pytest.mark.parametrize("way", [*WAYS, "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_numbers_are_found_in_memory_by_their_places_in_the_weight(
    geometry: tuple[int, ...], dtype: str, way: str, share: float
) -> None:
    """More of them than either dtype counts exactly in one digit of bfloat16."""
    o, i, kernel, _ = geometry
    shape = torch.Size((o, i, kernel, kernel))
    plain = plain_place(shape, DTYPES[dtype], torch.device("cpu"))
    place = plain if way == "plain" else place_of(way, dtype, *geometry)
    random = torch.Generator().manual_seed(0)
    weight = (torch.rand(shape, generator=random) + 0.5).to(place.dtype)
    mask = torch.rand(shape, generator=random) < share
    where = positions(mask)
    at, which = place.moved(where)
    memory = torch.zeros(place.length, dtype=place.dtype)
    memory[at] = weight.view(-1)[where][which]
    assert at.tolist() == sorted(set(at.tolist()))
    assert sorted(which.tolist()) == list(range(len(where)))
    assert memory.equal(place.arranged(torch.where(mask, weight, 0.0)))


def test_more_numbers_than_one_digit_holds_are_told_apart_in_fp32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest layers have more than 2^24 weights."""
    place = plain_place(torch.Size((12, 5, 3, 3)), torch.float32, torch.device("cpu"))
    where = torch.arange(0, 540, 2)
    expected = place.moved(where)
    for base in (2, 7, 269, 270, 271):
        monkeypatch.setitem(places._WHOLE, torch.float32, base)
        assert all(torch.equal(one, other) for one, other in zip(place.moved(where), expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_s_way_lays_no_layer_in_an_order_that_a_single_picture_does_not_want(
    dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of ResNets for which oneDNN is known to want another order for one picture, and one of the usual kind."""
    monkeypatch.setattr("service.engine.places.onednn.found", lambda: (None, "hidden"))
    layers = [(1024, 256, 1, 14), (512, 1024, 1, 14), (256, 128, 3, 28), (64, 64, 3, 55)]
    convs = {str(layer): conv(layer[2]) for layer in layers}
    shapes = {str((o, i, k, side)): torch.Size((o, i, k, k)) for o, i, k, side in layers}
    sizes = {str(layer): (layer[3], layer[3]) for layer in layers}
    before = torch.get_num_threads()
    layout = layout_of(shapes, convs, sizes, dtype, torch.device("cpu"), onednn=True, threads=threads)
    assert torch.get_num_threads() == before
    laid = {name: place for name, place in layout.places.items() if isinstance(place, Opaque)}
    if not laid:
        pytest.skip("oneDNN's order cannot be used on this processor")
    for name, place in laid.items():
        weight = torch.rand(place.shape)
        with computing_in(threads):
            alone = reordered(weight.to(place.dtype), convs[name], sizes[name], batch=1)
        assert torch.equal(memory_of(alone, place.dtype), place.arranged(weight)), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_s_own_smaller_network_lies_alike_and_counts_its_bytes(dtype: str, way: str) -> None:
    """19 channels are padded to whole blocks."""
    place = place_of(way, dtype, 64, 33, 3, 1)
    places = {"conv.weight": place, "fc.weight": plain_place(torch.Size((4, 5)), place.dtype, place.device)}
    weights = {"conv.weight": torch.rand((19, 33, 3, 3)), "fc.weight": torch.rand((2, 3))}
    layout = Layout(places, dict.fromkeys(places, 0), 0)
    own = own_weights(own_key(weights, dtype), weights, layout)
    held = place.like(weights["conv.weight"].shape)
    assert type(held) is type(place)
    assert held.length > weights["conv.weight"].numel()
    assert own.nbytes >= (held.length + 6) * place.dtype.itemsize
    assert own.nbytes <= (held.length + 6 + 2 * 64) * place.dtype.itemsize
    assert own.tensors["conv.weight"].shape == weights["conv.weight"].shape


def test_a_layer_lies_plainly_where_any_like_it_is_computed_wrongly_with_what_comes_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator that is wrong only when it adds: one of two like layers adds, and one of another kernel does not."""
    right = places.conv2d

    def wrong(
        x: Tensor, weight: Tensor, bias: Tensor | None, step: Conv, add: Tensor | None, act: str | None
    ) -> Tensor:
        return right(x, weight, bias, step, None, act)

    convs = {"adds": replace(conv(3), add=0, act="relu"), "like it": replace(conv(3), act="relu"), "other": conv(1)}
    shapes = {"adds": (24, 8, 3, 3), "like it": (24, 8, 3, 3), "other": (24, 8, 1, 1)}

    def plain() -> set[str]:
        places._tried.cache_clear()
        sizes = dict.fromkeys(convs, SIZE)
        given = {name: torch.Size(shape) for name, shape in shapes.items()}
        layout = layout_of(given, convs, sizes, "fp32", torch.device("cpu"), onednn=True, threads=1)
        return {name for name, place in layout.places.items() if type(place) is Place}

    try:
        if plain():
            pytest.skip("oneDNN's order cannot be used on this processor")
        monkeypatch.setattr(places, "conv2d", wrong)
        assert plain() == {"adds", "like it"}
    finally:
        monkeypatch.undo()
        places._tried.cache_clear()


def test_trying_layers_leaves_the_number_of_threads_as_it_was() -> None:
    """Also that of threads which have never asked for theirs."""
    code = (
        "import threading, torch; torch.set_num_threads(2)\n"
        "from masks_store import create, read_backbone\n"
        "from service.engine import Engine\n"
        "Engine(read_backbone(create('tinyresnet', image_size=8).data), threads=1, slot_bytes=1 << 20)\n"
        "found = [torch.get_num_threads()]\n"
        "asking = threading.Thread(target=lambda: found.append(torch.get_num_threads()))\n"
        "asking.start(); asking.join(); print(found)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[2, 2]", ran.stderr


def test_a_layer_is_tried_at_the_first_size_that_is_computed_from_its_order() -> None:
    place = place_of("direct", "fp32", 20, 3, 3, 1)
    assert isinstance(place, Ordered)
    moving = {(3, 3), (4, 4)}

    class Plans:
        def plan(self, read: tuple[int, int, int]) -> SimpleNamespace:
            return SimpleNamespace(moves=read[1:] in moving and read[0] == 8)

    told = replace(place, order=Plans())
    assert told.tried_at([(3, 3), (4, 4), (5, 5), (6, 6)]) == (5, 5)
    assert told.tried_at([(3, 3), (4, 4)]) == (3, 3), "none fits"


def test_layers_of_one_kind_share_their_order_and_its_plans() -> None:
    first, second = place_of("direct", "fp32", 20, 3, 3, 1), place_of("direct", "fp32", 20, 3, 3, 1)
    assert isinstance(first, Ordered)
    assert isinstance(second, Ordered)
    assert first.order is second.order
