"""The golden files of format version 1: they load for ever, and mean for ever what they meant when they were made.

Everything is compared with a second reader that was written from FORMAT.md and shares no code with the package, or
with the formulas that `tests/golden/make.py` states.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from masks_store import (
    Backbone,
    check_probe,
    decode_claim,
    eager_prober,
    read_artifact,
    state_of,
    task_digest,
    unpack_images,
    view_of,
    visible,
    write_artifact,
)
from tests.reference import reader

from .golden import UNITS, WEIGHTS, Golden

SETS = {"weights": WEIGHTS, "units": UNITS}
EVERY = [pytest.param(made, name, id=f"{of}-{name}") for of, made in SETS.items() for name in made.lineages]
CONV = ("conv1.weight", "layers.0.0.conv1.weight", "layers.0.0.conv2.weight")


data, lineage = WEIGHTS.data, WEIGHTS.lineage


@pytest.fixture(scope="module")
def shared() -> Backbone:
    return WEIGHTS.backbone()


def number(k: int, count: int) -> list[float]:
    return [((7 * i + 3 * k) % 33 - 16) / 64 for i in range(count)]


# ---------------------------------------------------------------- bytes and digests
@pytest.mark.parametrize("golden", SETS.values(), ids=SETS)
def test_no_golden_file_has_changed(golden: Golden) -> None:
    assert {path.stem for path in golden.folder.glob("*.safetensors")} == set(golden.digests)
    assert golden.backbone().digest == golden.digests["backbone"]
    for name in golden.lineages:
        assert golden.lineage(name)[-1].version == golden.digests[name]


@pytest.mark.parametrize(("golden", "name"), EVERY)
def test_an_artifact_is_written_to_the_same_bytes(golden: Golden, name: str) -> None:
    artifact = golden.lineage(name)[-1]
    assert write_artifact(artifact.manifest, artifact.tensors) == golden.data(name)
    backwards = {part: artifact.tensors[part] for part in reversed([*artifact.tensors])}
    assert write_artifact(artifact.manifest, backwards) == golden.data(name)


def test_the_sums_for_naming_a_task_are_what_was_written() -> None:
    sums = read_artifact(data("sums")).sums
    assert sums is not None
    assert sums.mean.flatten().tolist() == number(100, 3 * 128)
    assert sums.scatter.diag().tolist() == [1 + abs(n) for n in number(101, 128)]
    assert int((sums.scatter != 0).sum()) == 128
    assert sums.count.tolist() == [12, 0, 7]
    assert sums.scores.tolist() == [i / 64 for i in range(101)]
    assert read_artifact(data("clr")).sums is None


# ---------------------------------------------------------------- the manifest
def test_the_manifest_says_what_was_written() -> None:
    manifest = read_artifact(data("child")).manifest
    assert (manifest.task, manifest.method) == ("insects.2", "packnet")
    assert (manifest.backbone, manifest.parent) == (WEIGHTS.digests["backbone"], WEIGHTS.digests["packnet"])
    assert manifest.classes == ("zebra", "шмель", '雪 "quoted"')
    assert (manifest.preprocess.resize, manifest.preprocess.size) == (9, 8)
    assert (manifest.preprocess.mean, manifest.preprocess.std) == ((0.5, 0.25, 0.125), (0.25, 0.5, 1.0))
    assert manifest.preprocess.interpolation == "bicubic"
    assert (manifest.metrics.val_top1, manifest.metrics.test_top1) == (0.75, None)
    assert manifest.metrics.images == {"train": 12, "val": 4}
    assert (manifest.provenance.seed, manifest.provenance.data) == (0, "sha256:" + "d" * 64)
    assert manifest.provenance.versions == {"torch": "2.15.0"}


def test_the_backbones_manifest_says_what_was_written(shared: Backbone) -> None:
    manifest = shared.manifest
    assert (manifest.arch, manifest.arch_args) == ("tinyresnet", {"width": 4, "blocks": [1]})
    assert (manifest.image_size, manifest.keep, manifest.norm_adapted) == (8, 0.5, True)
    assert manifest.source == "sha256:" + "5" * 64


# ---------------------------------------------------------------- masks and values, from the formulas
def test_the_backbone_keeps_every_second_third_and_fifth_weight(shared: Backbone) -> None:
    for k, (name, every) in enumerate(zip(CONV, (2, 3, 5), strict=True)):
        kept, weights = shared.kept[name].flatten().tolist(), shared.tensors[name].flatten().tolist()
        assert kept == [i % every == 0 for i in range(len(kept))]
        assert weights == [w if i % every == 0 else 0.0 for i, w in enumerate(number(k, len(kept)))]
    assert {info.codec for info in shared.manifest.masks.values()} == {"raw", "deflate", "gaps"}


def test_claims_lie_where_the_formulas_put_them(shared: Backbone) -> None:
    parent, child = lineage("child")
    first = decode_claim(parent, shared, [])
    second = decode_claim(child, shared, [first])
    assert {info.codec for info in parent.manifest.masks.values()} == {"raw", "deflate", "gaps"}
    assert second.keys() == set(CONV[1:])
    for k, (name, every) in enumerate(zip(CONV, (2, 3, 5), strict=True)):
        left = [i for i in range(shared.kept[name].numel()) if i % every]
        claimed = left[1::4]
        assert first[name].flatten().nonzero().flatten().tolist() == claimed
        assert parent.tensors[f"value/{name}"].tolist() == number(20 + k, len(claimed))
        if name in second:
            rest = [i for i in left if i not in claimed][::3]
            assert second[name].flatten().nonzero().flatten().tolist() == rest
            assert child.tensors[f"value/{name}"].tolist() == number(50 + k - 1, len(rest))


@pytest.mark.parametrize("name", ["piggyback", "pick"])
def test_selections_hide_what_the_formulas_say_and_nothing_else(shared: Backbone, name: str) -> None:
    parent, child = lineage(name)
    owned = visible(shared, [decode_claim(parent, shared, [])])
    claim = decode_claim(child, shared, [decode_claim(parent, shared, [])])
    weights = view_of(shared, [parent]).weights
    for k, layer in enumerate(CONV):
        seen = [i for i, own in enumerate(owned[layer].flatten().tolist()) if own]
        free = [i for i in range(owned[layer].numel()) if i not in seen]
        if name == "piggyback":
            hidden, claimed = [i for i in seen if i % 3 == 1], []
        else:
            hidden, claimed = seen[2::4] if k < 2 else [], free[1::3] if k else []
        expected = weights[layer].flatten().tolist()
        for i in hidden:
            expected[i] = 0.0
        for i, value in zip(claimed, number(90 + k - 1, len(claimed)), strict=True):
            expected[i] = value
        assert view_of(shared, [parent, child]).weights[layer].flatten().tolist() == expected
        mask = claim.get(layer, torch.zeros_like(owned[layer]))
        assert mask.flatten().nonzero().flatten().tolist() == claimed


def test_values_keep_the_precision_they_were_written_in() -> None:
    tensors = read_artifact(data("packnet")).tensors
    assert [tensors[f"value/{name}"].dtype for name in CONV] == [torch.float32, torch.bfloat16, torch.float16]


# ---------------------------------------------------------------- against the reader written from FORMAT.md
@pytest.mark.parametrize(("golden", "name"), EVERY)
def test_both_readers_see_the_same_network(golden: Golden, name: str) -> None:
    ours = state_of(golden.backbone(), view_of(golden.backbone(), golden.lineage(name)))
    theirs = reader.state(golden.twin("backbone"), golden.twins(name))
    assert ours.keys() == theirs.keys()
    for part, values in theirs.items():
        assert ours[part].numpy().tobytes() == np.ascontiguousarray(values).tobytes(), part


@pytest.mark.parametrize(("golden", "name"), EVERY)
def test_the_task_digest_is_that_of_the_format(golden: Golden, name: str) -> None:
    artifacts = golden.lineage(name)
    expected = reader.task_digest(golden.twin("backbone"), golden.twins(name))
    assert artifacts[-1].manifest.task_digest == expected
    assert task_digest(golden.backbone(), view_of(golden.backbone(), artifacts)) == expected


@pytest.mark.parametrize(("golden", "name"), EVERY)
def test_the_probe_passes_and_its_logits_are_those_of_the_slow_network(golden: Golden, name: str) -> None:
    artifacts = golden.lineage(name)
    check_probe(golden.backbone(), artifacts, view_of(golden.backbone(), artifacts), eager_prober)
    logits = artifacts[-1].tensors["probe.logits"].numpy()
    files = reader.pictures(golden.twins(name)[-1])
    assert len(files) == 2
    for file, ours, row in zip(files, unpack_images(artifacts[-1].tensors["probe.images"], 8), logits, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(file)))
        assert np.array_equal(picture, ours)
        slow = reader.logits(golden.twin("backbone"), golden.twins(name), picture)
        assert np.abs(slow - row).max() <= 1e-4 * logits.std()
