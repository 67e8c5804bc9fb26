"""The weights that tasks share: what each claim owns stays its own, however many there are."""

from __future__ import annotations

import pytest
import torch

from service.engine import shared as module
from service.engine.shared import PIECE, Shared

from .. import zoo


def test_numbers_of_claims_that_went_are_used_again() -> None:
    backbone, layer = zoo.backbone(keep=0.5), "conv1.weight"
    shared = Shared(backbone, torch.device("cpu"))
    free = ~backbone.kept[layer]
    for number in range(300):
        shared.claim(f"version {number}", {layer: free}, {layer: torch.full((int(free.sum()),), float(number))})
        assert torch.equal(shared.claim_of(f"version {number}")[layer], free)
        shared.release(f"version {number}")
    assert shared.owners_of({layer: free}) == []
    assert {owner.dtype for owner in shared._owners.values()} == {torch.uint8}  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_that_a_forward_was_the_first_to_ask_for_can_be_claimed_later(dtype: str) -> None:
    """A forward runs in inference mode; what is made there is never to be written outside of it."""
    backbone, layer = zoo.backbone(keep=0.5), "conv1.weight"
    shared, free = Shared(backbone, torch.device("cpu")), ~backbone.kept[layer]
    view = shared.layout(dtype).new()
    with torch.inference_mode():
        shared.base(dtype)
        shared.fill(view, dtype, None, {})
    shared.claim("later", {layer: free}, {layer: torch.full((int(free.sum()),), 0.5)})
    shared.fill(view, dtype, shared.shown(dtype, ["later"]), {})
    weight = shared.layout(dtype).places[layer].restored(view.memory[layer])
    assert bool((weight[free] == 0.5).all())


@pytest.mark.parametrize("piece", [7, PIECE])
def test_claims_keep_their_weights_when_numbers_outgrow_a_byte(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    backbone, layer = zoo.backbone(keep=0.5), "layers.2.0.conv1.weight"
    shared = Shared(backbone, torch.device("cpu"))
    free = (~backbone.kept[layer]).nonzero()[:300]
    assert len(free) == 300
    seen = {}
    for number, at in enumerate(free):
        claim = torch.zeros_like(backbone.kept[layer])
        claim[tuple(at)] = True
        shared.claim(f"version {number}", {layer: claim}, {layer: torch.tensor([float(number)])})
        if number in (0, 100, 250):
            seen[number] = shared.shown("fp32", [f"version {number}"])
    for number, at in enumerate(free):
        assert torch.equal(shared.claim_of(f"version {number}")[layer].nonzero(), at[None])
    for number, before in seen.items():
        assert torch.equal(shared.shown("fp32", [f"version {number}"]), before)
    view = shared.layout("fp32").new()
    shared.fill(view, "fp32", shared.shown("fp32", [f"version {number}" for number in range(300)]), {})
    weight = shared.layout("fp32").places[layer].restored(view.memory[layer])
    assert torch.equal(weight[tuple(free.T)], torch.arange(300.0))
    assert torch.equal(weight[backbone.kept[layer]], backbone.tensors[layer][backbone.kept[layer]])
