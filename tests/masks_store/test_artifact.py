"""The artifact's reader and writer: what is accepted, all faults at once, any flipped byte, round trips."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masks_store import (
    MaskInfo,
    TaskManifest,
    adapter_sites,
    check_probe,
    decode_claim,
    eager_prober,
    encode_claim,
    fit_faults,
    read_artifact,
    read_backbone,
    state_of,
    task_digest,
    view_of,
    write_artifact,
)
from masks_store.errors import FormatError, InvalidInput, TaskpackError

from .. import zoo
from .surgery import CONV, GOLDEN, PACKNET, faults, golden, take_apart


# ---------------------------------------------------------------- what is accepted
def test_a_file_put_together_by_hand_reads_like_the_original() -> None:
    original, again = read_artifact(PACKNET), read_artifact(golden("packnet").build())
    assert again.manifest == original.manifest
    assert again.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(again.tensors[name], original.tensors[name]) for name in original.tensors)


def test_the_order_of_the_tensors_does_not_matter() -> None:
    parts = golden("packnet")
    parts.tensors = dict(sorted(parts.tensors.items(), reverse=True))
    again = read_artifact(parts.build())
    assert all(torch.equal(t, again.tensors[name]) for name, t in read_artifact(PACKNET).tensors.items())


def test_other_metadata_is_ignored() -> None:
    parts = golden("clr")
    parts.metadata["format"] = "pt"
    assert read_artifact(parts.build()).manifest == read_artifact(golden("clr").build()).manifest


def test_optional_fields_may_be_left_out() -> None:
    parts = golden("clr")
    for name in ("masks", "metrics", "provenance"):
        del parts.manifest[name]
    del parts.manifest["preprocess"]["interpolation"]
    manifest = read_artifact(parts.build()).manifest
    assert (manifest.masks, manifest.metrics.val_top1, manifest.provenance.seed) == ({}, None, None)


# ---------------------------------------------------------------- every fault at once
def test_every_fault_of_a_bad_file_is_told_at_once() -> None:
    parts = golden("packnet")
    parts.manifest["task"] = "../etc"
    parts.manifest["colour"] = "blue"
    parts.manifest["preprocess"]["std"] = [0, 0, 0]
    parts.put("extra", [1.0])
    parts.put("head.bias", [0.0, math.nan, 0.0])
    parts.put("norm/bn1.running_var", [-1.0, 1, 1, 1])
    found = faults(parts.build())
    for said in ("manifest.task", "manifest.colour", "manifest.preprocess", "extra: ", "head.bias: ", "variance"):
        assert [fault for fault in found if said in fault], (said, found)
    assert len(found) == 6


def test_faults_of_names_shapes_dtypes_and_values_are_told_together() -> None:
    parts = golden("clr")
    parts.put("extra", [1.0])
    parts.put("head.weight", np.zeros((5, 4)))
    parts.put("head.bias", [0.0, math.inf, 0.0])
    parts.put("probe.logits", np.zeros((3, 3)))
    parts.put("adapter/conv1", np.zeros((4, 3, 3)))
    del parts.tensors["norm/bn1.bias"]
    parts.entries["adapter/layers.0.0.conv1"] = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
    found = faults(parts.build())
    for said in ("extra: ", "head.weight: ", "adapter/conv1: ", "norm/bn1: without bias", "dtype F64"):
        assert [fault for fault in found if said in fault], (said, found)
    del parts.entries["adapter/layers.0.0.conv1"]  # now the values can be looked at too
    found = faults(parts.build())
    for said in ("head.bias: holds NaN or infinity", "probe.logits: 3 rows for 2 pictures", "extra: "):
        assert [fault for fault in found if said in fault], (said, found)


def test_a_thousand_faults_are_told_and_the_rest_counted() -> None:
    parts = golden("clr")
    for i in range(1500):
        parts.put(f"x{i}", [])
    found = faults(parts.build())
    assert len(found) == 1001
    assert found[-1] == "and 500 more"


def test_a_fault_shows_no_more_of_a_strangers_text_than_fits_on_a_line() -> None:
    parts = golden("clr")
    parts.put("x" * 200, [1.0])
    parts.put("\x1b[31mred", [1.0])
    parts.manifest["masks"] = {"y" * 100_000: {"codec": "raw", "bits": 0, "ones": 0}}
    parts.manifest["k" * 100_000] = 1
    for fault in faults(parts.build()):
        assert len(fault) < 400
        assert fault.isprintable()


# ---------------------------------------------------------------- flipped bytes
@pytest.mark.parametrize(
    ("name", "flip"),
    [("packnet", 0x01), ("clr", 0x80)]
    + [
        pytest.param(name, 1 << bit, marks=pytest.mark.slow) for name in ("packnet", "child", "clr") for bit in range(8)
    ],
)
def test_no_flipped_byte_breaks_the_reader_or_keeps_the_version(name: str, flip: int) -> None:
    data = (GOLDEN / f"{name}.safetensors").read_bytes()
    original = read_artifact(data)
    accepted = 0
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        try:
            artifact = read_artifact(broken)
        except FormatError:
            continue
        accepted += 1
        assert artifact.version != original.version
        safetensors.torch.load(broken)  # what we accept, the library accepts
    assert accepted > 0, "some flips only change a value"


def test_no_flipped_byte_of_a_tensor_changes_what_a_checked_version_computes() -> None:
    shared = read_backbone((GOLDEN / "backbone.safetensors").read_bytes())
    sound = state_of(shared, view_of(shared, [read_artifact(PACKNET)]))
    begin = len(PACKNET) - sum(len(d) for _, _, d in take_apart(PACKNET).tensors.values())
    refused = 0
    for at in range(begin, len(PACKNET), 5):
        broken = PACKNET[:at] + bytes([PACKNET[at] ^ (1 << at % 8)]) + PACKNET[at + 1 :]
        try:
            artifact = read_artifact(broken)
            view = view_of(shared, [artifact])
            if task_digest(shared, view) != artifact.manifest.task_digest:
                raise FormatError("task digest")
            check_probe(shared, [artifact], view, eager_prober)
        except TaskpackError:
            refused += 1
            continue
        state = state_of(shared, view)
        assert all(torch.equal(state[name], tensor) for name, tensor in sound.items())
    assert refused > 100


# ---------------------------------------------------------------- round trips
FREE = read_backbone((GOLDEN / "backbone.safetensors").read_bytes())
SHARES = st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 99), SHARES, SHARES, SHARES), min_size=1, max_size=4), st.data())
def test_any_lineage_of_claims_is_written_and_read_unchanged(
    tasks: list[tuple[int, float, float, float]], data: st.DataObject
) -> None:
    claims: list[dict[str, torch.Tensor]] = []
    manifest = read_artifact(PACKNET).manifest
    rest = {n: t for n, t in read_artifact(PACKNET).tensors.items() if n.startswith(("head", "probe"))}
    for seed, *shares in tasks:
        random = torch.Generator().manual_seed(seed)
        layers = data.draw(st.sets(st.sampled_from(CONV), min_size=1))
        claim: dict[str, torch.Tensor] = {}
        for name, share in zip(CONV, shares, strict=True):
            if name in layers:
                free = ~FREE.kept[name]
                for other in claims:
                    free &= ~other.get(name, torch.zeros_like(free))
                claim[name] = free & (torch.rand(free.shape, generator=random) < share)
        tensors, masks = encode_claim(claim, FREE, claims)
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        values = {f"value/{n}": torch.randn(int(m.sum()), generator=random).to(dtype) for n, m in claim.items()}
        written = write_artifact(manifest.model_copy(update={"masks": masks}), {**rest, **tensors, **values})
        again = read_artifact(written)
        decoded = decode_claim(again, FREE, claims)
        assert decoded.keys() == claim.keys()
        assert all(torch.equal(decoded[name], mask) for name, mask in claim.items())
        assert all(torch.equal(again.tensors[name], value) for name, value in values.items())
        claims.append(claim)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(st.lists(names, min_size=1, max_size=5, unique=True), st.dictionaries(names, names, max_size=3))
def test_any_class_names_and_versions_are_written_and_read_unchanged(
    classes: list[str], versions: dict[str, str]
) -> None:
    artifact = read_artifact((GOLDEN / "clr.safetensors").read_bytes())
    fields = artifact.manifest.model_dump(by_alias=True)
    manifest = TaskManifest.model_validate(
        {**fields, "classes": classes, "provenance": {"seed": 2**63, "versions": versions}}
    )
    head = {
        "head.weight": torch.zeros(len(classes), 4),
        "head.bias": torch.zeros(len(classes)),
        "probe.logits": torch.zeros(2, len(classes)),
    }
    assert read_artifact(write_artifact(manifest, {**artifact.tensors, **head})).manifest == manifest


# ---------------------------------------------------------------- writing
def test_a_header_that_no_reader_takes_is_not_written() -> None:
    artifact = read_artifact((GOLDEN / "clr.safetensors").read_bytes())
    manifest = artifact.manifest.model_copy(update={"classes": tuple(f"class number {i:060}" for i in range(20_000))})
    with pytest.raises(InvalidInput, match="fewer or shorter class names"):
        write_artifact(manifest, artifact.tensors)


def test_a_mask_of_the_manifest_cannot_hold_more_ones_than_bits() -> None:
    with pytest.raises(ValueError, match="5 ones do not fit into 4 bits"):
        MaskInfo(codec="raw", bits=4, ones=5)


def test_adapters_fit_any_convolution_of_their_channels_and_nothing_else() -> None:
    shared = zoo.backbone()
    full = read_artifact(zoo.task(shared, "all", "clr", full=True))
    ones = {name for name, conv in adapter_sites(shared.shape_only(), full=True).items() if max(conv.kernel_size) == 1}
    assert ones
    assert ones <= set(full.of_kind("adapter"))
    assert fit_faults(full, shared) == []
    one = "layers.1.0.shortcut.0"  # 1x1, to 8 channels
    assert one in ones
    strange = {"adapter/bn1": torch.ones(4, 1, 3, 3), f"adapter/{one}": torch.ones(3, 1, 3, 3)}
    wrong = dataclasses.replace(full, tensors={**full.tensors, **strange})
    assert fit_faults(wrong, shared) == [
        "adapter/bn1: the backbone has no such layer",
        f"adapter/{one}: f32 [3, 1, 3, 3] where f32/bf16/f16 [8, 1, 3, 3] was expected",
    ]
