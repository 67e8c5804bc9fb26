"""The probe passes on a sound version, and tells every way in which it is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from masks_store import (
    Artifact,
    Backbone,
    FormatError,
    ProbeFailed,
    check_probe,
    eager_prober,
    pack_images,
    plain_arithmetic,
    probe_faults,
    read_artifact,
    synthetic_images,
    unpack_images,
    view_of,
)
from tests import tf32, zoo


def test_pictures_are_seeded_and_survive_packing() -> None:
    pictures = synthetic_images(24, seed=3)
    assert pictures.shape == (4, 24, 24, 3)
    assert np.array_equal(pictures, synthetic_images(24, seed=3))
    assert not np.array_equal(pictures, synthetic_images(24, seed=4))
    assert pictures.std() > 10
    assert np.array_equal(unpack_images(pack_images(pictures), 24), pictures)


@pytest.mark.parametrize("position", [0, 4, 8, 12, 16, 20])
def test_broken_packing_is_refused(position: int) -> None:
    packed = pack_images(synthetic_images(8, seed=0, n=3))  # count, 4 offsets, then PNG files from byte 20 on
    packed[position] += 1
    with pytest.raises(FormatError, match=r"probe\.images"):
        unpack_images(packed, 8)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(FormatError, match="picture 0"):
        unpack_images(pack_images(synthetic_images(8, seed=0)), 16)


def test_a_sound_version_passes_and_a_changed_weight_fails(tiny_backbone: Backbone) -> None:
    sound = read_artifact(zoo.task(tiny_backbone))
    check_probe(tiny_backbone, [sound], view_of(tiny_backbone, [sound]), eager_prober)
    tensors = dict(sound.tensors)
    tensors["head.bias"] = tensors["head.bias"] + torch.tensor([0.1, 0.0, 0.0])
    changed = [dataclasses.replace(sound, tensors=tensors)]
    with pytest.raises(ProbeFailed) as caught:
        check_probe(tiny_backbone, changed, view_of(tiny_backbone, changed), eager_prober)
    assert "off by" in caught.value.faults[0]


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-4), ("bf16", 0.25)])
def test_the_largest_difference_is_bounded_in_sigmas(dtype: str, bound: float) -> None:
    reference = torch.tensor([[0.0, 2.0] * 50])  # standard deviation 1
    for factor, passes in ((0.9, True), (1.1, False)):
        got = reference.clone()
        got[0, 0] += bound * factor
        assert (probe_faults(reference, got, dtype) == []) is passes  # pyright: ignore[reportArgumentType]


def test_bf16_is_bounded_in_the_mean_too() -> None:
    reference = torch.tensor([[0.0, 2.0] * 50])
    assert probe_faults(reference, reference + 0.029, "bf16") == []
    assert "rms" in probe_faults(reference, reference + 0.031, "bf16")[0]


def test_a_clear_winner_must_stay() -> None:
    reference = torch.zeros(1, 100)
    reference[0, :2] = torch.tensor([40.0, 37.0])
    sigma = float(reference.std(correction=0))
    got = reference.clone()
    got[0, 0] -= 0.24 * sigma
    got[0, 1] += 0.24 * sigma
    clear = 2 * 0.25 * sigma < 3.0
    faults = probe_faults(reference, got, "bf16")
    assert clear
    assert not any("winner" in fault for fault in faults), "2 x 0.24 sigma cannot turn a gap of over 0.5 sigma"
    got[0, 1] += 1.0
    assert any("winner" in fault for fault in probe_faults(reference, got, "bf16"))


@pytest.mark.parametrize("got", [torch.zeros(2, 4), torch.full((2, 3), float("nan"))])
def test_wrong_shape_or_nan_fails(got: torch.Tensor) -> None:
    assert probe_faults(torch.randn(2, 3), got) != []


def test_the_reference_is_computed_without_tf32_and_the_switches_are_put_back(tiny_backbone: Backbone) -> None:
    lineage = [read_artifact(zoo.task(tiny_backbone))]
    with tf32.never_used():
        eager_prober(tiny_backbone, lineage, view_of(tiny_backbone, lineage))
        with pytest.raises(KeyError), plain_arithmetic():
            raise KeyError


def test_artifacts_differ_only_where_they_should(tiny_backbone: Backbone) -> None:
    one, two = (read_artifact(zoo.task(tiny_backbone, name)) for name in ("one", "two"))
    assert one.version != two.version
    assert one.manifest.task_digest == two.manifest.task_digest
    assert isinstance(one, Artifact)
