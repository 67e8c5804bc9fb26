"""One number a weight says of a lineage what its claims say side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masks_store import Claim, FormatError, Pool, Takers, free_positions, takers, visible
from tests import zoo

BACKBONE = zoo.backbone(keep=0.5)
LAYERS = ["conv1.weight", "layers.1.0.conv1.weight"]


def lineage_of(layers: Sequence[Sequence[str]], seed: int) -> list[Claim]:
    """A claim for each list of layers, of which it takes some of what is free; a layer may be taken nothing of."""
    random = torch.Generator().manual_seed(seed)
    claims: list[Claim] = []
    for names in layers:
        free = free_positions(BACKBONE, claims)
        share = float(torch.rand((), generator=random))
        claims.append(
            {name: free[name] & (torch.rand(free[name].shape, generator=random) < share - 0.1) for name in names}
        )
    return claims


def values_of(claims: Sequence[Claim], seed: int) -> list[dict[str, Tensor]]:
    """Values for claims, zeros of both signs among them."""
    random = torch.Generator().manual_seed(seed)
    found: list[dict[str, Tensor]] = []
    for claim in claims:
        drawn = {name: torch.randn(int(mask.sum()), generator=random) for name, mask in claim.items()}
        found.append({name: values * (values.abs() > 0.3) for name, values in drawn.items()})
    return found


def slowly(claims: Sequence[Claim], values: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights that a lineage owns: one claim after another, into a pool."""
    pool = Pool(BACKBONE)
    for claim, own in zip(claims, values, strict=True):
        pool.write(claim, own)
    return pool.masked(visible(BACKBONE, claims))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(LAYERS), unique=True), max_size=6),
    st.integers(0, 1000),
    st.sampled_from([7, 64, 1 << 17]),
)
def test_it_says_what_the_claims_say(layers: list[list[str]], seed: int, piece: int):
    claims = lineage_of(layers, seed)
    values, found = values_of(claims, seed), Takers.of(claims)
    assert found.count == len(claims)
    for one, other in zip(found.claims(), claims, strict=True):
        assert all(torch.equal(mask, other.get(name, torch.zeros_like(mask))) for name, mask in one.items())
        assert other.keys() <= one.keys()
    for count in (None, *range(len(claims) + 1)):
        expected = visible(BACKBONE, claims[: len(claims) if count is None else count])
        assert all(torch.equal(mask, expected[name]) for name, mask in found.seen(BACKBONE, count).items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takers, "PIECE", piece)
        weights = found.weights(BACKBONE, values)
    expected = slowly(claims, values)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name].view(torch.int32), own.view(torch.int32)) for name, own in expected.items())


def test_a_longer_lineage_leaves_the_shorter_as_it_is():
    claims = lineage_of([LAYERS, LAYERS[:1], LAYERS], seed=3)
    two = Takers.of(claims[:2])
    before = {name: taken.clone() for name, taken in two.layers.items()}
    kept = {name: mask.clone() for name, mask in BACKBONE.kept.items()}
    three = two.then(claims[2])
    three.weights(BACKBONE, values_of(claims, 0))
    three.seen(BACKBONE)
    assert two.count == 2
    assert all(torch.equal(taken, before[name]) for name, taken in two.layers.items())
    assert all(torch.equal(mask, kept[name]) for name, mask in BACKBONE.kept.items())


def test_the_three_hundredth_of_a_lineage_is_told_from_the_others():
    name, early = max(BACKBONE.kept, key=lambda name: BACKBONE.kept[name].numel()), "conv1.weight"
    free = torch.where(~BACKBONE.kept[name].view(-1))[0][:300]
    claims: list[Claim] = []
    for place in free.tolist():
        mask = torch.zeros(BACKBONE.kept[name].shape, dtype=torch.bool)
        mask.view(-1)[place] = True
        claims.append({name: mask})
    claims[4] = {**claims[4], early: ~BACKBONE.kept[early]}  # a layer that nobody takes of any more
    values = [{name: torch.tensor([float(number)])} for number in range(1, 301)]
    values[4][early] = torch.ones(int(claims[4][early].sum()))
    found = Takers.of(claims)
    assert found.layers[name].dtype == torch.int16
    assert Takers.of(claims[:255]).layers[name].dtype == torch.uint8
    weights = found.weights(BACKBONE, values)[name].view(-1)
    assert weights[free].tolist() == [float(number) for number in range(1, 301)]
    for one, other in zip(found.claims(), claims, strict=True):
        assert all(torch.equal(mask, other.get(layer, torch.zeros_like(mask))) for layer, mask in one.items())
    for count in (255, 256, 257, 261, 300):
        expected = visible(BACKBONE, claims[:count])
        assert all(torch.equal(mask, expected[layer]) for layer, mask in found.seen(BACKBONE, count).items())


def test_more_versions_than_numbers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(takers, "MOST", 2)
    with pytest.raises(FormatError, match="more than 2 versions"):
        Takers.of([{}, {}, {}])
