"""Convolutions of small maps as one matrix product: the same values and gradients, and only where it is told to."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from masks_store.bodies import own_body
from trainer.network import Network
from trainer.small_maps import SmallMaps, is_small, product


def gradients(output: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Of a sum with weights that tell positions apart."""
    weights = torch.arange(output.numel(), dtype=output.dtype).view(output.shape).sin()
    return list(torch.autograd.grad((output * weights).sum(), leaves))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(1, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    biased=st.booleans(),
)
def test_the_product_is_the_convolution_with_its_gradients(
    sizes: tuple[int, int, int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    biased: bool,
) -> None:
    count, channels, outputs, height, width = sizes
    assume(height + 2 * padding[0] >= kernel[0] and width + 2 * padding[1] >= kernel[1])
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, channels, height, width), (outputs, channels, *kernel), (outputs,)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    leaves = leaves if biased else leaves[:2]
    input, weight, bias = (*leaves, None)[:3]
    assert input is not None
    assert weight is not None
    found = product(input, weight, bias, stride, padding)
    expected = F.conv2d(input, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_is_computed_only_where_one_is_asked_for() -> None:
    input, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(8, 3, 3, 3)
    product(input, weight, None, (1, 1), (1, 1)).sum().backward()
    assert input.grad is not None
    assert weight.grad is None
    input, weight = input.detach(), weight.requires_grad_()
    product(input, weight, None, (1, 1), (1, 1)).sum().backward()
    assert input.grad is None
    assert weight.grad is not None


def test_under_autocast_the_output_has_its_dtype_and_the_gradients_those_of_their_tensors() -> None:
    torch.manual_seed(0)
    input, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(8, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = product(input, weight, None, (1, 1), (1, 1))
        expected = F.conv2d(input, weight, None, 1, 1)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, input, weight), gradients(expected, input, weight), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("layer", "side", "taken"),
    [
        (nn.Conv2d(2, 8, 3, padding=1), 4, True),  # 2 x 16 positions, 4 x 8 allowed
        (nn.Conv2d(2, 7, 3, padding=1), 4, False),  # 4 x 7 allowed
        (nn.Conv2d(2, 8, 3, padding=1, stride=2), 8, True),
        (nn.Conv2d(2, 8, 3, padding=1), 8, False),
        (nn.Conv2d(2, 8, 1), 4, True),
        (nn.Conv2d(7, 8, 1), 32, False),
        (nn.Conv2d(7, 8, 1, stride=2), 32, True),  # whatever its size: oneDNN would break on it
        (nn.Conv2d(8, 8, 1, stride=2), 32, False),
        (nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular"), 4, True),  # padded before
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2, False),
        (nn.Conv2d(2, 8, 3, padding=2, dilation=2), 4, False),
        (nn.Conv2d(2, 8, 3, padding="same"), 4, False),
    ],
)
def test_only_a_plain_convolution_of_small_maps_or_one_that_onednn_breaks_on_is_a_product(
    layer: nn.Conv2d, side: int, taken: bool
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, layer.in_channels, side, side)
    with SmallMaps():
        found = layer(images)
    torch.testing.assert_close(found, layer(images))
    assert ("Convolution" not in found.grad_fn.name()) == taken


BROKEN = """
import torch
from torch import nn
from trainer.small_maps import SmallMaps

torch.set_num_threads(1)
layer = nn.Conv2d(4, 8, 1, stride=2).to(memory_format=torch.channels_last)
images = torch.randn(32, 4, 16, 16).contiguous(memory_format=torch.channels_last)
for _ in range(300):
    with SmallMaps():
        layer(images).square().sum().backward()
    between = [torch.randn(length) for length in range(1, 60)]  # whose memory was written over
print("sound")
"""


def test_a_gradient_that_onednn_writes_out_of_bounds_is_computed_without_it() -> None:
    """On a processor with AVX2 and without AVX-512 the plain layer ends the process within these steps."""
    ran = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "sound"), ran.stderr


def test_a_network_computes_small_maps_as_products_and_answers_as_before() -> None:
    torch.manual_seed(0)
    body = own_body("tinyresnet", {})
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    features = body.double()(images).shape[1]
    network = Network(body, features, 5, trains_norm=True).double()
    found, expected = network(images), network.head(body(images))
    torch.testing.assert_close(found, expected)
    assert "PatchesBackward" in steps_of(found)
    assert "PatchesBackward" not in steps_of(expected)


def steps_of(output: Tensor) -> set[str]:
    """The names of what led to a tensor."""
    found, waiting = dict[Any, str](), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            waiting.extend(parent for parent, _ in node.next_functions)
    return set(found.values())


def test_the_bound_is_on_all_positions_of_the_batch() -> None:
    weight = torch.empty(16, 4, 3, 3)
    assert is_small(torch.empty(4, 4, 4, 4), weight, (1, 1), (1, 1))
    assert not is_small(torch.empty(5, 4, 4, 4), weight, (1, 1), (1, 1))
    assert is_small(torch.empty(5, 4, 4, 4), weight, (2, 2), (1, 1))
