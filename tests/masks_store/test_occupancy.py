"""One owner number per weight says the same as all claims side by side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masks_store import Claim, OutOfCapacity, Takers, free_positions, overlap
from masks_store import occupancy as module
from masks_store.occupancy import PIECE, Occupancy
from tests import zoo

BACKBONE = zoo.backbone(keep=0.5)
LAYERS = ["conv1.weight", "layers.1.0.conv1.weight"]


def claim_of(free: Claim, seed: int, share: float) -> Claim:
    random = torch.Generator().manual_seed(seed)
    return {name: free[name] & (torch.rand(free[name].shape, generator=random) < share) for name in LAYERS}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=12), st.integers(0, 1000))
def test_it_says_what_the_claims_say_whatever_comes_and_goes(steps: list[tuple[bool, int]], seed: int):
    occupancy, claims = Occupancy(BACKBONE), dict[str, Claim]()
    for comes, number in steps:
        version = f"version {number}"
        if version in claims and not comes:
            occupancy.remove(version)
            del claims[version]
        elif version not in claims and comes:
            claims[version] = claim_of(free_positions(BACKBONE, claims.values()), seed + number, 0.4)
            assert occupancy.overlap(claims[version]) == []
            occupancy.add(version, claims[version])
        free = free_positions(BACKBONE, claims.values())
        assert all(torch.equal(occupancy.free()[name], mask) for name, mask in free.items())
        assert occupancy.counts() == {name: (int(mask.sum()), mask.numel()) for name, mask in free.items()}
        assert sorted(occupancy.versions) == sorted(claims)
        for held, claim in claims.items():
            assert held in occupancy
            assert all(torch.equal(occupancy.claim(held)[name], claim[name]) for name in LAYERS)
        order = sorted(claims, reverse=seed % 2 == 1)
        lineage = [*order[:1], "took nothing", *order[1:]]
        expected = Takers.of([claims.get(one, {}) for one in lineage])
        found = occupancy.takers(lineage)
        assert found.count == expected.count
        assert found.layers.keys() == expected.layers.keys()
        assert all(torch.equal(taken, expected.layers[name]) for name, taken in found.layers.items())
    greedy = claim_of({name: torch.ones_like(kept) for name, kept in BACKBONE.kept.items()}, seed, 0.5)
    backbone = {"the backbone": BACKBONE.kept}
    expected = overlap(greedy, {**claims, **backbone})
    assert sorted(occupancy.overlap(greedy)) == sorted(expected)


def test_more_claims_than_numbers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 2)  # 32,767 claims would take minutes
    occupancy = Occupancy(BACKBONE)
    for version in ("a", "b"):
        occupancy.add(version, {})
    with pytest.raises(OutOfCapacity, match="at most 2 versions"):
        occupancy.add("c", {})
    occupancy.remove("a")
    occupancy.add("c", {})
    assert occupancy.versions == ("b", "c")


@pytest.mark.parametrize("piece", [7, PIECE])
def test_claims_keep_their_weights_when_numbers_outgrow_a_byte(piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIECE", piece)
    occupancy, layer = Occupancy(BACKBONE), "layers.2.0.conv1.weight"
    free = (~BACKBONE.kept[layer]).nonzero()[:300]
    assert len(free) == 300
    for number, at in enumerate(free):
        claim = torch.zeros_like(BACKBONE.kept[layer])
        claim[tuple(at)] = True
        occupancy.add(f"version {number}", {layer: claim})
    for number, at in enumerate(free):
        assert torch.equal(occupancy.claim(f"version {number}")[layer].nonzero(), at[None])
    for count in (255, 256, 300):
        lineage = [f"version {number}" for number in range(count)]
        taken = occupancy.takers(lineage).layers[layer]
        assert [int(taken[tuple(at)]) for at in free] == [*range(1, count + 1), *[0] * (300 - count)]
    occupancy.remove("version 299")
    assert occupancy.counts()[layer][0] == int((~BACKBONE.kept[layer]).sum()) - 299
