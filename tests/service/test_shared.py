"""The weights that tasks share: what each claim owns stays its own, however many there are."""

from __future__ import annotations

import torch

from service.engine.shared import Shared

from .. import zoo


def test_claims_keep_their_weights_when_numbers_outgrow_a_byte() -> None:
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
