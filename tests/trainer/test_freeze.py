"""METHODS §0.1: frozen means bit-identical, whatever the optimiser, the memory format and the gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from trainer.freeze import Guard, freeze, trained
from trainer.penalty import add_norm_gradients
from trainer.phase import Phase, make_optimizer
from trainer.plan import make_fabric
from trainer.step import make_gear, train_step

from .rig import CPU, state_bits

FORMATS = [torch.contiguous_format, torch.channels_last]
OPTIMIZERS = [("sgd", 0.0), ("sgd", 1e-2), ("adam", 1e-2), ("adamw", 1e-2)]


def _network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())
    network.append(nn.Linear(4 * 6 * 6, 5))
    return network.to(memory_format=memory_format)


def _half() -> dict[str, torch.Tensor | None]:
    """About half of each weight trains, and the last bias whole; the first biases are frozen."""
    generator = torch.Generator().manual_seed(1)
    weights = {n: p for n, p in _network().named_parameters() if n.endswith("weight")}
    return {**{n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in weights.items()}, "4.bias": None}


def _fabric(precision: str = "32-true") -> Fabric:
    return make_fabric(precision, CPU)


def _frozen_bits(network: nn.Module) -> dict[str, bytes]:
    """The bits of every entry that `_half` does not train."""
    masks = _half()
    frozen = {}
    for name, parameter in network.named_parameters():
        mask = masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        if mask is not None:
            frozen[name] = parameter.detach().contiguous()[~mask]
    return state_bits(frozen)


def _loss(network: nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return network(torch.randn(7, 3, 8, 8, generator=generator)).square().mean()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("optimizer", "decay"), OPTIMIZERS)
def test_frozen_entries_keep_their_bits_and_the_others_train(optimizer, decay, memory_format):
    network = _network(memory_format)
    before, start = _frozen_bits(network), copy.deepcopy(network.state_dict())
    phase, fabric = (
        Phase("train", 1, 1e-2, "constant", optimizer, weight_decay=decay, penalty=1e-3, clip=1.0),
        _fabric(),
    )
    gear = make_gear(fabric, network, phase, _half())
    for step in range(10):
        train_step(fabric, gear, phase, 1e-2, _loss(gear.model, step))
        assert _frozen_bits(network) == before
    for name, mask in _half().items():
        moved = (network.get_parameter(name) != start[name])[... if mask is None else mask]
        assert float(moved.float().mean()) > 0.9, f"{name} should train"


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 1e-2), ("adam", 1e-2), ("adamw", 1e-2)])
def test_zeroed_gradients_alone_do_not_freeze(optimizer, decay):
    """The control: without `restore`, each of these optimisers moves what has no gradient."""
    network = _network()
    before = _frozen_bits(network)
    guard = freeze(network, _half())
    parameters = trained(network)
    stepper = make_optimizer(Phase("train", 1, 1e-2, "constant", optimizer, weight_decay=decay), [*parameters.values()])
    for step in range(10):
        stepper.zero_grad()
        _loss(network, step).backward()
        guard.mask_gradients(parameters)
        stepper.step()
    assert _frozen_bits(network) != before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_optimisers_state_is_zero_where_frozen_after_every_step(optimizer):
    network, fabric = _network(torch.channels_last), _fabric()
    phase = Phase("train", 1, 1e-2, "constant", optimizer, weight_decay=1e-2)
    gear = make_gear(fabric, network, phase, _half())
    for step in range(3):
        train_step(fabric, gear, phase, 1e-2, _loss(gear.model, step))
        checked = 0
        for name, mask in _half().items():
            for state in gear.optimizer.state[network.get_parameter(name)].values():
                if mask is not None and state.shape == mask.shape:
                    assert not bool(state[~mask].any()), f"{name}: a moment is left where frozen"
                    assert bool(state[mask].any()), f"{name}: no moment where it trains"
                    checked += 1
        assert checked >= 3


def test_momentum_of_an_earlier_phase_does_not_reach_the_next():
    network, fabric = _network(), _fabric()
    phase = Phase("train", 1, 1e-1, "constant", "sgd")
    gear = make_gear(fabric, network, phase, _half())
    for step in range(3):
        train_step(fabric, gear, phase, 1e-1, _loss(gear.model, step))
    again = make_gear(fabric, network, phase, _half())
    before = state_bits(dict(network.named_parameters()))
    train_step(fabric, again, phase, 1e-1, 0.0 * _loss(again.model, 0))  # no gradient: only a memory could move it
    assert state_bits(dict(network.named_parameters())) == before


def test_nan_and_infinite_gradients_of_frozen_entries_touch_nothing():
    network, fabric = _network(), _fabric()
    before, masks = _frozen_bits(network), _half()
    phase = Phase("train", 1, 1e-2, "constant", "sgd", clip=1.0)
    gear = make_gear(fabric, network, phase, masks)
    weight, mask = network.get_parameter("0.weight"), masks["0.weight"]
    poison = torch.where(mask, 1.0, float("nan"))
    poison[tuple((~mask).nonzero()[::2].T)] = float("inf")
    assert bool(poison.isinf().any())
    assert bool(poison.isnan().any())
    train_step(fabric, gear, phase, 1e-2, (weight * poison).sum())
    assert _frozen_bits(network) == before
    assert bool(torch.isfinite(weight).all())


def test_values_that_a_product_would_spoil_are_held():
    network, fabric = _network(), _fabric()
    masks, weight = _half(), network.get_parameter("0.weight")
    odd = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
    with torch.no_grad():
        frozen = (~masks["0.weight"]).nonzero()[:5]
        weight[tuple(frozen.T)] = odd
    before = _frozen_bits(network)
    phase = Phase("train", 1, 1e-2, "constant", "adamw", weight_decay=1e-2)
    gear = make_gear(fabric, network, phase, masks)
    train_step(fabric, gear, phase, 1e-2, network.get_parameter("2.weight").sum() + weight.nansum())
    assert _frozen_bits(network) == before


@pytest.mark.parametrize("source", ["loss", "penalty", "lasso"])
def test_the_gradient_and_the_regularisers_are_masked_before_they_are_clipped(source):
    network, fabric = _network(), _fabric()
    masks, weight = _half(), network.get_parameter("0.weight")
    mask = masks["0.weight"]
    frozen = {"loss": 1e6, "penalty": 0.0, "lasso": 0.0}[source]
    factors = {source: 1e6} if source != "loss" else {}
    spared = tuple(name for name, _ in network.named_parameters() if name != "0.weight")
    phase = Phase("train", 1, 1.0, "constant", "sgd", clip=1.0, lasso_spares=spared, **factors)
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # where the penalty has no gradient: at 0
            parameter.mul_(0.0 if name != "0.weight" else torch.where(mask, 0.0, 1.0))
    gear = make_gear(fabric, network, phase, masks)
    start = weight.detach().clone()
    train_step(fabric, gear, phase, 1.0, (weight * torch.where(mask, 1.0, frozen)).sum())
    step = float((start - weight.detach()).norm())
    assert step == pytest.approx(1.0, rel=1e-3)  # a frozen gradient of 1e6 would have shrunk it to nothing


def test_a_skipped_step_leaves_everything_and_still_restores():
    network, fabric = _network(torch.channels_last), _fabric("16-mixed")
    before = _frozen_bits(network)
    phase = Phase("train", 1, 1e-2, "constant", "adam", weight_decay=1e-2)
    gear = make_gear(fabric, network, phase, _half())
    train_step(fabric, gear, phase, 1e-2, _loss(gear.model, 0))
    scale = fabric.strategy.precision.scaler.get_scale()
    trainable = state_bits(
        {n: p[... if m is None else m] for n, m in _half().items() for p in [network.get_parameter(n)]}
    )
    with torch.no_grad():
        network.get_parameter("0.weight").add_(1.0)  # somebody wrote where nobody may
    with torch.no_grad():  # …and put what trains back, so that only the frozen entries are off
        network.get_parameter("0.weight").sub_(torch.where(_half()["0.weight"], 1.0, 0.0))
    train_step(fabric, gear, phase, 1e-2, _loss(gear.model, 1) * float("inf"))
    assert fabric.strategy.precision.scaler.get_scale() < scale, "the step should have been skipped"
    assert _frozen_bits(network) == before
    now = {n: p[... if m is None else m] for n, m in _half().items() for p in [network.get_parameter(n)]}
    for name in set(now) - {"0.weight"}:
        assert state_bits(now)[name] == trainable[name], "a skipped step must not train"


def test_half_precision_scaling_changes_neither_penalty_nor_clip():
    """Unscale first: under a gradient scaler the step is the one that fp32 takes, bit for bit (powers of two)."""
    results = []
    for precision in ("32-true", "16-mixed"):
        network, fabric = _network(), _fabric(precision)
        phase = Phase("train", 1, 0.5, "constant", "sgd", penalty=0.25, clip=0.5)
        gear = make_gear(fabric, network, phase, _half())
        for _ in range(2):
            train_step(fabric, gear, phase, 0.5, sum(0.5 * p.sum() for p in gear.parameters.values()))
        results.append(state_bits(dict(network.named_parameters())))
    assert results[0] == results[1]


def test_freezing_survives_deepcopy():
    original = _network(torch.channels_last)
    phase = Phase("train", 1, 1e-2, "constant", "adamw", weight_decay=1e-2)
    guard = freeze(original, _half())
    network = copy.deepcopy(original)
    before = _frozen_bits(network)
    parameters = trained(network)
    assert set(parameters) == set(_half())
    stepper = make_optimizer(phase, [*parameters.values()])
    for step in range(3):
        stepper.zero_grad()
        _loss(network, step).backward()
        guard.mask_gradients(parameters)
        stepper.step()
        guard.restore(parameters, stepper)
    assert _frozen_bits(network) == before
    assert state_bits(dict(original.named_parameters())) == state_bits(dict(_network().named_parameters()))


def test_freezing_survives_load_state_dict():
    network, fabric = _network(), _fabric()
    before = _frozen_bits(network)
    phase = Phase("train", 1, 1e-2, "constant", "sgd", weight_decay=1e-2)
    gear = make_gear(fabric, network, phase, _half())
    foreign = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    foreign["0.bias"], foreign["2.bias"] = (
        network.state_dict()["0.bias"].clone(),
        network.state_dict()["2.bias"].clone(),
    )
    network.load_state_dict(foreign)
    train_step(fabric, gear, phase, 1e-2, _loss(gear.model, 0))
    assert _frozen_bits(network) == before
    assert not network.get_parameter("0.bias").requires_grad


def test_a_parameter_that_is_not_named_is_not_even_given_to_the_optimiser():
    network = _network()
    freeze(network, {"4.weight": None, "0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)})
    assert list(trained(network)) == ["4.weight"]


def test_masks_that_do_not_fit_are_refused_with_what_came():
    network = _network()
    with pytest.raises(ValueError, match=r"no parameter 5\.weight"):
        freeze(network, {"5.weight": None})
    with pytest.raises(ValueError, match=r"0.weight is \[4, 3, 3, 3\] but its mask is \[4, 3\]"):
        freeze(network, {"0.weight": torch.ones(4, 3, dtype=torch.bool)})


def test_the_guards_masks_have_the_parameters_memory_format():
    guard: Guard = freeze(_network(torch.channels_last), _half())
    assert guard.mask["0.weight"].stride() == _network(torch.channels_last).get_parameter("0.weight").stride()


def test_the_penalty_is_the_gradient_of_the_sum_of_norms_and_zero_at_zero():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(2, 2))]
    expected = torch.autograd.grad(0.3 * (parameters[0].norm() + parameters[1].norm()), parameters[:2])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    add_norm_gradients(parameters, 0.3)
    for parameter, gradient in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, 1.0 + gradient)
    assert torch.equal(parameters[2].grad, torch.ones(2, 2))
