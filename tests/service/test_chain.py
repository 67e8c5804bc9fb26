"""A forward's first steps in one call give the bits that they give one by one, however values live and die in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine import Kernels, computing_in, onednn
from service.engine.chain import KEPT, MIXED, Chains, Ending
from service.engine.onednn import Laid
from service.engine.operators import conv2d
from service.engine.places import onednn_place
from service.engine.pooling import max_pool
from service.engine.program import Conv, MaxPool, Program, trace

from .. import zoo
from ..processor import ONEDNN_DTYPES
from . import rig

CHANNELS, SIDE = 8, 12


@pytest.fixture(autouse=True)
def there() -> None:
    library, why = onednn.found()
    if library is None:
        pytest.skip(why)


class Network(nn.Module):
    """Convolutions, additions and poolings of any wiring, and one step that no chain does."""

    def __init__(self, wirings: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.wirings = wirings
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.MaxPool2d(3, 1, 1) if kind == "pool" else nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            for kind, *_ in wirings
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for (kind, source, other), layer in zip(self.wirings, self.layers, strict=True):
            y = layer(values[-1 - source % len(values)])
            if kind == "add":
                y = y + values[-1 - other % len(values)]
            values.append(F.relu(y) if kind in ("add", "relu") else y)
        return sum(values[1:], values[0]).mean((2, 3))


def laid(program: Program, network: nn.Module, dtype: torch.dtype) -> dict[str, Laid]:
    made: dict[str, Laid] = {}
    for step in program.steps:
        if isinstance(step, Conv):
            weight = network.get_parameter(step.weight).detach().to(dtype)
            place = onednn_place(step, weight.shape, dtype, (SIDE, SIDE))
            assert place is not None
            tensor, memory = place.new()
            memory.copy_(place.arranged(weight))
            assert isinstance(tensor, Laid)
            made[step.weight] = tensor
    return made


def one_by_one(
    program: Program, reach: int, weights: dict[str, Laid], biases: dict[str, Tensor], x: Tensor
) -> dict[int, Tensor]:
    values = {0: x}
    for step in program.steps[:reach]:
        if isinstance(step, Conv):
            add = None if step.add is None else values[step.add]
            given = values[step.source], weights[step.weight], biases[step.weight], replace(step, reuse=False)
            values[step.out] = conv2d(*given, add, step.act)
        else:
            assert isinstance(step, MaxPool)
            values[step.out] = max_pool(values[step.source], step)
    return values


WIRINGS = st.lists(
    st.tuples(st.sampled_from(["conv", "relu", "add", "add", "pool"]), st.integers(0, 3), st.integers(0, 9)),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=60)
@given(wirings=WIRINGS, rows=st.sampled_from([1, 2, 5]), dtype=st.sampled_from(ONEDNN_DTYPES), seed=st.integers(0, 99))
def test_every_value_that_is_read_later_has_the_bits_of_the_steps_one_by_one(
    wirings: list[tuple[str, int, int]], rows: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    network = Network(wirings).eval()
    program, chains = trace(network), Chains()
    weights = laid(program, network, dtype)
    biases = {name: torch.randn(CHANNELS).to(dtype) for name in weights}
    for _ in range(2):
        x = torch.randn((rows, 3, SIDE, SIDE)).to(dtype).contiguous(memory_format=torch.channels_last)
        reach, led = chains.lead(program, weights, lambda step: Ending(bias=biases[step.weight]), x)
        led = {value: tensor.clone() for value, tensor in led.items()}
        most = next(i for i, step in enumerate(program.steps) if not isinstance(step, Conv | MaxPool))
        assert reach == most, "nothing that a chain can do is left"
        expected = one_by_one(program, reach, weights, biases, x)
        assert led, "what follows reads something"
        for value, tensor in led.items():
            assert tensor.equal(expected[value]), value


@pytest.mark.parametrize("arch", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_a_usual_network_s_convolutions_are_one_call(arch: str) -> None:
    """All of them, in the folded forward of a task."""
    backbone = zoo.backbone(arch=arch, keep=1.0, size=64)
    made = rig.rig(backbone, [("linear", "linear", None, False)])
    reached: list[int] = []
    lead = Chains.lead

    def counted(self: Chains, *given: object) -> tuple[int, dict[int, Tensor]]:
        found = lead(self, *given)  # pyright: ignore[reportArgumentType]
        reached.append(found[0])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "lead", counted)
        images = rig.pictures(backbone, 2, 0)
        (got,) = made.run(["linear"], [images])
    rig.check(rig.reference(backbone, made.tasks["linear"], images), got)
    convolutions = [i for i, step in enumerate(trace(backbone.shape_only()).steps) if isinstance(step, Conv)]
    assert reached == [convolutions[-1] + 1] or reached[0] > convolutions[-1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_mixed_batch_in_one_call_has_the_bits_of_its_steps(dtype: str) -> None:
    backbone = zoo.backbone(arch="resnet18", keep=1.0, size=32)
    kinds = [("clr-a", "clr", None, False), ("clr-b", "clr", None, False), ("bn", "bn", None, False)]
    steps = Kernels(conv2d=lambda *given: conv2d(*given))
    chained, plain = rig.rig(backbone, kinds, dtype=dtype), rig.rig(backbone, kinds, dtype=dtype, kernels=steps)
    names = ["clr-b", "bn", "clr-a", "clr-b"]
    images = [rig.pictures(backbone, n, n) for n in (1, 2, 3, 1)]
    for one, other in zip(chained.run(names, images), plain.run(names, images), strict=True):
        assert one.tobytes() == other.tobytes()


def test_threads_and_sizes_of_batch_do_not_disturb_one_another() -> None:
    backbone = zoo.backbone(arch="resnet18", keep=1.0, size=32)
    made = rig.rig(backbone, [("linear", "linear", None, False), ("clr", "clr", None, False)])
    work = [(name, rig.pictures(backbone, 1 + i % 4, i)) for i in range(12) for name in ("linear", "clr")]

    def answer(given: tuple[str, np.ndarray]) -> bytes:
        with computing_in(1):
            return made.run([given[0]], [given[1]])[0].tobytes()

    alone = [answer(given) for given in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(answer, work)) == alone


def test_no_more_chains_are_kept_than_is_said() -> None:
    network = Network([("conv", 0, 0)]).eval()
    program, chains = trace(network), Chains()
    weights = laid(program, network, torch.float32)
    for rows in range(1, KEPT + 9):
        x = torch.zeros((rows, 3, SIDE, SIDE)).contiguous(memory_format=torch.channels_last)
        chains.lead(program, weights, lambda _: Ending(), x)
        assert len(chains) == min(rows, KEPT)


def test_a_layer_whose_ending_is_torch_s_ends_the_chain() -> None:
    network = Network([("conv", 0, 0), ("conv", 0, 0)]).eval()
    program = trace(network)
    weights = laid(program, network, torch.float32)
    x = torch.zeros((1, 3, SIDE, SIDE)).contiguous(memory_format=torch.channels_last)
    reach, led = Chains().lead(program, weights, lambda step: None if step.source else Ending(), x)
    assert reach == 1
    assert set(led) == {program.steps[0].out}
    assert Ending().kind != MIXED
