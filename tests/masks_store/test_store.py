"""The store: what registers, what answers, what may go, and that nothing is ever overwritten."""

from __future__ import annotations

import errno
import gc
import json
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from masks_store import (
    Artifact,
    Backbone,
    BackboneFile,
    BackboneMismatch,
    Claim,
    ClaimOverlap,
    FormatError,
    InvalidInput,
    MissingParent,
    NotFound,
    PreconditionFailed,
    ProbeFailed,
    Recent,
    Store,
    StoreCorrupt,
    TaskManifest,
    VersionInUse,
    View,
    digest_of,
    eager_prober,
    free_positions,
    ledger,
    lineage_claims,
    overlap,
    read_artifact,
    task_digest,
    transaction,
    write_artifact,
)
from masks_store import store as store_module
from masks_store.files import Files
from masks_store.manifest import dump_manifest, parse_manifest
from masks_store.registration import EAGER
from tests import zoo
from tests.crash.children import context

from .stores import artifact, backbone_file, new_store, same_logits, state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def put(store: Store, name: str, method: str = "linear", *, on: str | None = None, seed: int = 0, label: str = "auto"):
    """Register an artifact and return its version."""
    data = artifact(store, name, method, on=on, seed=seed)
    return store.register(data, label=label, prober=same_logits).version.version


# ------------------------------------------------------------------ create and open


def test_a_new_store_has_the_promised_layout_and_nothing_in_it(tmp_path: Path):
    store = new_store(tmp_path / "some" / "where" / "store")
    digest = digest_of(backbone_file().data)
    assert json.loads((store.path / "store.json").read_text()) == {
        "format": 1,
        "backbone": digest,
        "capacity": "weights",
    }
    assert (store.backbone_digest, store.backbone.digest, store.capacity) == (digest, digest, "weights")
    assert (store.path / "blobs" / "sha256" / digest[7:9] / digest[7:]).read_bytes() == backbone_file().data
    assert (store.path / "registry.sqlite3").is_file()
    assert store.runs == store.path / "runs"
    assert store.runs.is_dir()
    assert (store.tasks(), store.versions(), list(store.claims())) == ([], [], [])
    assert [event.kind for event in store.events()] == ["create"]
    assert store.verify() == []


def test_an_empty_directory_may_become_a_store(tmp_path: Path):
    (tmp_path / "store").mkdir()
    assert new_store(tmp_path / "store").verify() == []


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("store", "is a store already"),
        ("full", "is not empty"),
        ("file", "is a file"),
        ("file/new/store", "file/new/store cannot be made: .*file is a file, not a directory"),
    ],
)
def test_what_is_there_already_is_never_made_into_a_store(tmp_path: Path, name: str, match: str):
    new_store(tmp_path / "store").close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InvalidInput, match=match):
        new_store(tmp_path / name)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_of_two_that_create_the_same_store_one_wins(tmp_path: Path):
    answers: list[str] = []

    def create() -> None:
        try:
            new_store(tmp_path / "store").close()
            answers.append("made")
        except InvalidInput:
            answers.append("refused")

    together(create, create, create)
    assert sorted(answers) == ["made", "refused", "refused"]
    assert Store.open(tmp_path / "store").verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_mount_point_cannot_become_a_store_and_the_mend_is_told(tmp_path: Path):
    class Mounted(Files):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "store":
                raise OSError(errno.EBUSY, "Device or resource busy")
            super().rename(source, target)

    with pytest.raises(InvalidInput, match=r"is a mount point.*name a directory in it"):
        Store.create(tmp_path / "store", backbone_file(), files=Mounted())
    assert list(tmp_path.iterdir()) == []


def test_a_capacity_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path):
    with pytest.raises(InvalidInput, match="'layers' is not one of weights, units"):
        Store.create(tmp_path / "store", backbone_file(), capacity="layers")


def test_a_store_is_made_only_of_a_sound_backbone(tmp_path: Path):
    with pytest.raises(FormatError):
        Store.create(tmp_path / "store", BackboneFile(b"not a backbone"))
    assert list(tmp_path.iterdir()) == []


def test_a_pruned_backbone_comes_with_the_dense_weights_it_was_pruned_from(tmp_path: Path):
    made = backbone_file()
    for source in (None, b"other weights"):
        with pytest.raises(InvalidInput, match="dense weights"):
            Store.create(tmp_path / "store", BackboneFile(made.data, source))
    store = new_store(tmp_path / "store")
    assert made.source is not None
    assert store.blobs.get(store.backbone.manifest.source or "") == made.source


def test_opening_what_is_no_store_says_how_to_make_one(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(NotFound, match=r"taskpack init .* --backbone"):
            Store.open(path)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", StoreCorrupt, "is not JSON"),
        ("[1]", StoreCorrupt, "restore it"),
        ("{}", StoreCorrupt, "restore it"),
        ('{"format": 1, "backbone": "sha256:0", "capacity": "weights", "more": 1}', StoreCorrupt, "restore it"),
        ('{"format": 2, "backbone": "sha256:0", "capacity": "weights"}', InvalidInput, "format 2.*update taskpack"),
        ('{"format": 1, "backbone": "sha256:0", "capacity": "layers"}', StoreCorrupt, "layers"),
    ],
)
def test_a_damaged_or_newer_store_json_is_told(store: Store, text: str, error: type[Exception], match: str):
    (store.path / "store.json").write_text(text)
    with pytest.raises(error, match=match):
        Store.open(store.path)


def test_a_damaged_backbone_is_told_when_it_is_read(store: Store):
    blob = store.blobs.path(store.backbone_digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreCorrupt, match="is damaged"):
        _ = Store.open(store.path).backbone


# ------------------------------------------------------------------ register


def test_a_registered_version_is_its_bytes_and_answers_as_its_artifact_does(store: Store):
    data = artifact(store, "birds", "clr")
    registered = store.register(data)
    version = registered.version
    assert registered.created
    assert (version.version, version.task, version.method, version.state) == (digest_of(data), "birds", "clr", "ready")
    assert (version.size, version.parent, version.labels) == (len(data), None, ("stable",))
    assert version.manifest == read_artifact(data).manifest
    assert store.artifact_bytes(version.version) == data
    with store.open_artifact(version.version) as file:
        assert file.read() == data
    with pytest.raises(NotFound, match="no version"):
        store.open_artifact("sha256:" + "0" * 64)
    assert task_digest(store.backbone, store.view(version.version)) == version.manifest.task_digest
    assert store.resolve("birds") == version
    assert Store.open(store.path).versions() == [version]


def test_a_new_task_is_labelled_stable_and_a_new_version_of_it_canary(store: Store):
    first, second, third = (put(store, "birds", seed=seed) for seed in range(3))
    assert store.task("birds").labels == {"canary": third, "stable": first}
    assert store.task("birds").versions == (first, second, third)


@pytest.mark.parametrize(
    ("label", "labels"), [("stable", ("stable",)), ("canary", ("canary",)), ("none", ()), ("auto", ("stable",))]
)
def test_the_label_of_a_registration_may_be_chosen(store: Store, label: str, labels: tuple[str, ...]):
    assert store.register(artifact(store, "birds", "linear"), label=label).version.labels == labels


def test_a_task_that_came_as_anothers_ancestor_becomes_stable_when_it_is_registered_itself(store: Store):
    data = artifact(store, "birds", "linear")
    assert store.register(data, label="none").version.labels == ()
    assert store.register(data).version.labels == ("stable",)


def test_an_unknown_label_is_refused_before_anything_is_stored(store: Store):
    before = state(store)
    with pytest.raises(InvalidInput, match="'best' is not a label; the labels are stable and canary"):
        put(store, "birds", label="best")
    assert state(store) == before


def test_the_same_artifact_again_changes_only_its_label(store: Store):
    data = artifact(store, "birds", "linear")
    version = store.register(data).version
    before = store.last_event()
    again = store.register(data, label="canary")
    assert (again.created, again.version.labels) == (False, ("canary", "stable"))
    assert again.version.created == version.created
    assert [(event.kind, event.detail["label"]) for event in store.events(before)] == [("label", "canary")]


def test_repeating_a_registration_changes_nothing(store: Store):
    for label in ("auto", "stable", "none"):
        data = artifact(store, "birds", "linear", seed=hash(label) % 100)
        store.register(data, label=label)
        before = state(store)
        assert not store.register(data, label=label).created or label == "auto"
        if label != "auto" or store.task("birds").labels:
            assert state(store) == before


def test_an_artifact_of_another_backbone_is_refused_with_both_digests(store: Store):
    other = zoo.backbone(seed=5)
    with pytest.raises(BackboneMismatch) as caught:
        store.register(zoo.task(other, "birds", "linear"))
    assert other.digest in caught.value.faults[0]
    assert store.backbone_digest in caught.value.faults[0]


def test_an_artifact_without_its_parent_is_refused_with_the_parents_digest(store: Store):
    parent = read_artifact(artifact(store, "birds", "linear"))
    child = zoo.task(store.backbone, "owls", "linear", ancestors=[parent])
    before = state(store)
    with pytest.raises(MissingParent, match=parent.version):
        store.register(child)
    assert state(store) == before


def test_a_claim_of_owned_weights_is_refused_with_layer_count_and_owner(store: Store):
    owner = put(store, "birds", "packnet")
    greedy = artifact(store, "owls", "packnet", avoid=False)  # the same seed takes the same weights
    before = state(store)
    with pytest.raises(ClaimOverlap) as caught:
        store.register(greedy)
    assert state(store) == before
    claim = store.claim(owner)
    assert sorted(caught.value.faults) == sorted(
        f"{name}: {int(mask.sum())} claimed weights belong to {owner}" for name, mask in claim.items() if mask.any()
    )


def altered(store: Store, change: Callable[[Artifact], tuple[dict[str, object], dict[str, Tensor]]]) -> bytes:
    """A sound artifact with manifest fields and tensors put in place of its own."""
    sound = read_artifact(artifact(store, "birds", "linear"))
    fields, tensors = change(sound)
    return write_artifact(sound.manifest.model_copy(update=fields), {**sound.tensors, **tensors})


def test_tensors_altered_after_training_are_refused_by_the_task_digest(store: Store):
    data = altered(store, lambda sound: ({}, {"head.bias": sound.tensors["head.bias"] + 1e-6}))
    with pytest.raises(FormatError, match=r"task digest .* altered after training"):
        store.register(data)
    assert store.tasks() == []


@pytest.mark.parametrize("known", [True, False])
def test_on_ancestors_a_damaged_claim_and_another_value_are_refused(store: Store, known: bool):
    """Whether this process has their claims at hand or reads them for it."""
    birds = put(store, "birds", "packnet")
    owls = put(store, "owls", "packnet", on=birds, seed=1)
    sound = read_artifact(artifact(store, "finches", "packnet", on=owls, seed=2))
    name = next(name for name, info in sound.manifest.masks.items() if info.ones > 1)
    value = name.replace("mask/", "value/")
    info = sound.manifest.masks[name]
    wrong: list[tuple[str, dict[str, object], dict[str, Tensor]]] = [
        ("task digest .* altered after training", {}, {value: sound.tensors[value].flip(0)}),
        ("fault", {}, {name: sound.tensors[name][:-1].clone()}),
        ("fault", {"masks": {**sound.manifest.masks, name: info.model_copy(update={"bits": info.bits - 1})}}, {}),
    ]
    before = state(store)
    with Store.open(store.path) as elsewhere:
        asked = store if known else elsewhere
        for why, fields, tensors in wrong:
            data = write_artifact(sound.manifest.model_copy(update=fields), {**sound.tensors, **tensors})
            with pytest.raises(FormatError, match=why) as caught:
                asked.register(data)
            assert why != "fault" or all(fault.startswith(name) for fault in caught.value.faults)
    assert state(store) == before


def test_an_artifact_whose_probe_gives_other_logits_is_refused(store: Store):
    data = altered(store, lambda sound: ({}, {"probe.logits": sound.tensors["probe.logits"] + 1.0}))
    with pytest.raises(ProbeFailed):
        store.register(data)
    assert store.tasks() == []


def test_registration_runs_the_probe_on_the_engine_it_is_given(store: Store):
    seen: list[str] = []

    def broken(backbone: Backbone, lineage: Sequence[Artifact], view: View) -> Tensor:
        seen.append(lineage[-1].manifest.task)
        return eager_prober(backbone, lineage, view) * 1.5

    with pytest.raises(ProbeFailed):
        store.register(artifact(store, "birds", "linear"), prober=broken)
    assert seen == ["birds"]
    assert store.tasks() == []


def test_bytes_that_are_no_artifact_are_refused_and_not_stored(store: Store):
    before = state(store)
    for data in (b"", b"x" * 1000, backbone_file().data):
        with pytest.raises(FormatError):
            store.register(data)
    assert state(store) == before


# ------------------------------------------------------------------ resolve


def test_a_version_is_named_by_label_digest_or_prefix(store: Store):
    version = put(store, "birds")
    for name in ("stable", version, version[7:], version[: 7 + 12], version[7 : 7 + 12], version[:40]):
        assert store.resolve("birds", name).version == version


@pytest.mark.parametrize(
    "name", ["", "best", "sha256:", "abcdef12345", "ABCDEF123456", "sha256:abcdef12345", "md5:" + "a" * 64]
)
def test_what_cannot_name_a_version_is_refused_with_what_can(store: Store, name: str):
    put(store, "birds")
    with pytest.raises(InvalidInput, match=r"give a label \(stable, canary\), a digest"):
        store.resolve("birds", name)


def test_a_prefix_of_two_versions_is_refused_with_both(store: Store):
    version = put(store, "birds")
    twin = version[:-1] + ("0" if version[-1] != "0" else "1")
    with store.registry.write() as transaction:
        row = store.artifact(version)
        transaction.add_version(Artifact(row.manifest, row.tensors, twin, row.size), False, 99)
    with pytest.raises(InvalidInput) as caught:
        store.resolve("birds", version[:20])
    assert set(caught.value.faults) == {version, twin}
    assert store.resolve("birds", version).version == version


def test_unknown_tasks_labels_and_versions_are_not_found(store: Store):
    version = put(store, "birds")
    other = put(store, "owls", seed=1)
    for task, name in (
        ("nope", "stable"),
        ("nope", version),
        ("birds", "canary"),
        ("birds", other),
        ("birds", "0" * 64),
    ):
        with pytest.raises(NotFound):
            store.resolve(task, name)
    for call in (store.task, store.versions, store.delete_task):
        with pytest.raises(NotFound, match="no task 'nope'"):
            call("nope")
    with pytest.raises(NotFound):
        store.artifact_bytes("sha256:" + "0" * 64)


# ------------------------------------------------------------------ labels


def test_a_label_moves_and_goes_back(store: Store):
    first, second = put(store, "birds"), put(store, "birds", seed=1)
    assert store.set_label("birds", "stable", second).labels == ("canary", "stable")
    assert store.resolve("birds").version == second
    store.set_label("birds", "stable", first[:19])
    assert store.resolve("birds").version == first
    store.set_label("birds", "stable", "canary")
    assert store.resolve("birds").version == second


def test_a_label_is_set_only_where_it_was_expected(store: Store):
    first, second = put(store, "birds"), put(store, "birds", seed=1, label="none")
    before = state(store)
    with pytest.raises(PreconditionFailed, match=f"stable .* is at {first}, not at {second}"):
        store.set_label("birds", "stable", second, if_match=second)
    with pytest.raises(PreconditionFailed, match="is not there"):
        store.set_label("birds", "canary", second, if_match=second)
    with pytest.raises(PreconditionFailed, match="is there already"):
        store.set_label("birds", "stable", second, if_none_match=True)
    with pytest.raises(PreconditionFailed):
        store.drop_label("birds", "stable", if_match=second)
    assert state(store) == before
    store.set_label("birds", "stable", second, if_match=first)
    store.set_label("birds", "canary", first, if_none_match=True)
    assert store.task("birds").labels == {"canary": first, "stable": second}
    store.drop_label("birds", "canary", if_match=first)
    assert store.task("birds").labels == {"stable": second}


def test_only_labels_there_are_on_versions_there_are(store: Store):
    version = put(store, "birds")
    stranger = put(store, "owls", seed=1)
    before = state(store)
    for label, name, error in (
        ("best", version, InvalidInput),
        ("stable", "nonsense", InvalidInput),
        ("stable", stranger, NotFound),
    ):
        with pytest.raises(error):
            store.set_label("birds", label, name)
    with pytest.raises(NotFound, match="has no label canary"):
        store.drop_label("birds", "canary")
    with pytest.raises(InvalidInput):
        store.drop_label("birds", "best")
    assert state(store) == before


def test_setting_a_label_where_it_is_makes_no_event(store: Store):
    version = put(store, "birds")
    before = state(store)
    store.set_label("birds", "stable", version)
    assert state(store) == before


# ------------------------------------------------------------------ delete and retire


def test_a_labelled_version_is_not_deleted_and_its_labels_are_named(store: Store):
    version = put(store, "birds")
    store.set_label("birds", "canary", version)
    before = state(store)
    for retire in (False, True):
        with pytest.raises(VersionInUse, match="labelled canary and stable"):
            store.delete_version("birds", version, retire=retire)
    assert state(store) == before


def test_a_version_that_others_build_on_is_not_deleted_and_they_are_named(store: Store):
    base = put(store, "birds", label="none")
    children = [put(store, "owls", on=base), put(store, "birds", on=base, seed=1)]
    with pytest.raises(VersionInUse) as caught:
        store.delete_version("birds", base)
    assert caught.value.faults == (f"owls {children[0]}", f"birds {children[1]}")


def test_a_retired_version_answers_no_more_but_keeps_its_claim_for_its_children(store: Store):
    base = put(store, "birds", "packnet", label="none")
    child = put(store, "owls", "packnet", on=base)
    view, claim = store.view(child), store.claim(base)
    assert store.delete_version("birds", base, retire=True) == "retired"
    with pytest.raises(NotFound, match="is retired"):
        store.resolve("birds", base)
    with pytest.raises(NotFound, match="is retired"):
        store.set_label("birds", "stable", base)
    assert [version.state for version in store.versions("birds")] == ["retired"]
    assert torch.equal(store.claims()[base]["conv1.weight"], claim["conv1.weight"])
    again = Store.open(store.path)
    assert task_digest(again.backbone, again.view(child)) == task_digest(store.backbone, view)
    with pytest.raises(ClaimOverlap):
        again.register(artifact(again, "greedy", "packnet", avoid=False))
    assert again.verify() == []


def test_a_version_without_children_is_deleted_even_if_it_might_be_retired(store: Store):
    put(store, "birds")
    version = put(store, "birds", seed=1, label="none")
    assert store.delete_version("birds", version, retire=True) == "deleted"
    assert version not in store.task("birds").versions


def test_a_retired_version_can_be_built_on_and_goes_when_its_children_are_gone(store: Store):
    base = put(store, "birds", "packnet", label="none")
    first = put(store, "owls", on=base)
    store.delete_version("birds", base, retire=True)
    second = put(store, "owls", on=base, seed=1)  # the retrained child has its parent
    store.drop_label("owls", "stable")
    store.drop_label("owls", "canary")
    store.delete_version("owls", first)
    with pytest.raises(VersionInUse):
        store.delete_version("birds", base)
    store.delete_version("owls", second)
    assert store.delete_version("birds", base) == "deleted"
    assert store.tasks() == []


def test_a_retired_artifact_registered_again_answers_again(store: Store):
    data = artifact(store, "birds", "packnet")
    base = store.register(data, label="none").version.version
    put(store, "owls", on=base)
    store.delete_version("birds", base, retire=True)
    again = store.register(data)
    assert (again.created, again.version.state, again.version.labels) == (True, "ready", ("stable",))
    assert store.resolve("birds").version == base
    assert store.verify() == []


def test_a_deleted_claim_is_free_at_once_and_its_blob_stays(store: Store):
    data = artifact(store, "birds", "packnet")
    free = store.capacity_left()
    version = store.register(data).version.version
    assert store.capacity_left() != free
    other = Store.open(store.path)
    assert version in other.claims()
    store.delete_task("birds")
    for one in (store, other):
        assert list(one.claims()) == []
        assert one.capacity_left() == free
    assert store.artifact_bytes(version) == data
    successor = artifact(store, "owls", "packnet", seed=0)
    assert overlap(store.claim(version), {"new": store.claim(store.register(successor).version.version)}) != []
    with pytest.raises(ClaimOverlap):
        store.register(data)


def test_a_task_goes_with_all_its_versions_and_labels(store: Store):
    base = put(store, "birds", "packnet")
    put(store, "birds", on=base)  # a child of its own is no hindrance
    put(store, "owls", seed=9)
    store.delete_task("birds")
    assert [task.name for task in store.tasks()] == ["owls"]
    assert {version.task for version in store.versions()} == {"owls"}
    assert store.verify() == []


def test_a_task_that_others_build_on_stays_whole_and_they_are_named(store: Store):
    base = put(store, "birds")
    put(store, "birds", seed=1)
    child = put(store, "owls", on=base)
    before = state(store)
    with pytest.raises(VersionInUse) as caught:
        store.delete_task("birds")
    assert caught.value.faults == (f"owls {child}",)
    assert state(store) == before


def test_retiring_a_task_keeps_only_what_others_need(store: Store):
    base = put(store, "birds", "packnet")
    middle = put(store, "birds", "packnet", on=base)
    spare = put(store, "birds", seed=1)
    put(store, "owls", on=middle)
    store.delete_task("birds", retire=True)
    assert [(v.version, v.state) for v in store.versions("birds")] == [(base, "retired"), (middle, "retired")]
    assert store.task("birds").labels == {}
    assert spare not in store.task("birds").versions
    assert store.verify() == []


def test_a_task_whose_versions_are_all_retired_begins_anew_with_stable(store: Store):
    base = put(store, "birds", "packnet")
    put(store, "owls", on=base)
    store.delete_task("birds", retire=True)
    fresh = put(store, "birds", seed=1)
    assert store.task("birds").labels == {"stable": fresh}


# ------------------------------------------------------------------ events and probes


def test_events_tell_who_did_what_when_in_order(store: Store):
    first = store.register(artifact(store, "birds", "linear"), actor="ann").version.version
    second = put(store, "birds", seed=1, label="none")
    store.set_label("birds", "stable", second, actor="bob")
    store.drop_label("birds", "stable", actor="cleo")
    store.delete_version("birds", first, actor="dora")
    store.delete_task("birds", actor="emil")
    told = [(event.seq, event.actor, event.kind, event.task, event.version) for event in store.events()]
    assert told == [
        (1, "cli", "create", None, None),
        (2, "ann", "register", "birds", first),
        (3, "ann", "label", "birds", first),
        (4, "cli", "register", "birds", second),
        (5, "bob", "label", "birds", second),
        (6, "cleo", "unlabel", "birds", second),
        (7, "dora", "delete", "birds", first),
        (8, "emil", "delete", "birds", second),
    ]
    assert store.last_event() == 8
    times = [event.time for event in store.events()]
    assert times == sorted(times)
    assert all({"host", "pid", "command"} <= set(event.detail) for event in store.events())
    assert [event.seq for event in store.events(after=5, limit=2)] == [6, 7]


def test_numbers_of_events_are_never_used_again(store: Store):
    put(store, "birds")
    last = store.last_event()
    store.delete_task("birds")
    put(store, "birds")
    assert [event.seq for event in Store.open(store.path).events(last)] == list(range(last + 1, store.last_event() + 1))


def test_probe_results_are_kept_by_version_engine_device_and_dtype(store: Store):
    version = store.register(artifact(store, "birds", "linear")).version.version
    told = store.probe_result(version, EAGER, "cpu", "fp32")
    assert told is not None
    assert told.ok
    key = (version, "packed 3", "cuda:0", "bf16")
    assert store.probe_result(*key) is None
    store.record_probe(*key, False, "off by 2")
    found = store.probe_result(*key)
    assert found is not None
    assert (found.ok, found.detail) == (False, "off by 2")
    store.record_probe(*key, True)
    found = store.probe_result(*key)
    assert found is not None
    assert found.ok
    store.delete_task("birds")
    store.record_probe(*key, True)
    assert store.probe_result(*key) is None
    assert store.verify() == []


# ------------------------------------------------------------------ claims


def test_claims_free_weights_and_overlap_are_what_the_artifacts_say(store: Store):
    base = put(store, "birds", "packnet")
    child = put(store, "owls", "packnet", on=base)
    put(store, "art", "clr")
    claims = {
        version: lineage_claims(store.backbone, store.lineage(version))[-1] for version in (base, child)
    }  # decoded again, from the files
    for one in (store, Store.open(store.path)):
        assert list(one.claims()) == [base, child]
        for version, claim in claims.items():
            for name, mask in claim.items():
                assert torch.equal(one.claims()[version][name], mask)
        free = free_positions(store.backbone, claims.values())
        assert all(torch.equal(one.free_positions()[name], mask) for name, mask in free.items())
        assert one.capacity_left() == {name: (int(mask.sum()), mask.numel()) for name, mask in free.items()}
        greedy = {**claims[child], "conv1.weight": torch.ones_like(claims[child]["conv1.weight"])}
        told = [fault for fault in one.overlap("sha256:" + "0" * 64, greedy) if "backbone" not in fault]
        assert sorted(told) == sorted(overlap(greedy, claims))
    with pytest.raises(KeyError):
        store.claims()["sha256:" + "0" * 64]


def test_an_exported_file_is_the_artifact(store: Store, tmp_path: Path):
    data = artifact(store, "birds", "linear")
    store.export(store.register(data).version.version, tmp_path / "birds.safetensors")
    assert (tmp_path / "birds.safetensors").read_bytes() == data


# ------------------------------------------------------------------ several at once


def together(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_was_free_when_checked_is_checked_again_if_others_came_first(store: Store):
    """Red when the generation check is removed: both claims would be in."""
    ours = artifact(store, "ours", "packnet")
    theirs = artifact(store, "theirs", "packnet")  # the same weights
    other = Store.open(store.path)

    class SlowDisk(Files):
        """While our blob is being written, after our claim was found free, the other comes first."""

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if not other.tasks():
                other.register(theirs)

    with pytest.raises(ClaimOverlap):
        Store.open(store.path, files=SlowDisk()).register(ours)
    assert [task.name for task in store.tasks()] == ["theirs"]
    assert store.verify() == []


def test_a_parent_that_goes_while_its_child_is_checked_is_missed(store: Store):
    base = put(store, "birds", "packnet")
    child = artifact(store, "owls", "linear", on=base)

    class SlowDisk(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if store.tasks():
                store.delete_task("birds")

    with pytest.raises(MissingParent):
        Store.open(store.path, files=SlowDisk()).register(child)
    assert store.tasks() == []
    assert store.verify() == []


def test_a_change_that_does_not_matter_only_costs_a_second_look(store: Store):
    ours = artifact(store, "ours", "packnet")
    other = Store.open(store.path)
    harmless = artifact(store, "theirs", "clr")

    class SlowDisk(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if not other.tasks():
                other.register(harmless)

    assert Store.open(store.path, files=SlowDisk()).register(ours).created
    assert store.verify() == []


def test_of_many_threads_that_claim_the_same_weights_exactly_one_wins(store: Store):
    rivals = [artifact(store, f"task-{n}", "packnet") for n in range(4)]
    answers: list[str] = []

    def register(data: bytes) -> None:
        try:
            store.register(data)
            answers.append("in")
        except ClaimOverlap:
            answers.append("refused")

    together(*(lambda data=data: register(data) for data in rivals))
    assert sorted(answers) == ["in", "refused", "refused", "refused"]
    assert store.verify() == []


def _register_in_child(path: Path, data: bytes, start: object, answers: object) -> None:
    store = Store.open(path)
    _ = store.backbone
    start.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        store.register(data)
        answers.put("in")  # pyright: ignore[reportAttributeAccessIssue]
    except ClaimOverlap:
        answers.put("refused")  # pyright: ignore[reportAttributeAccessIssue]


def test_of_many_processes_that_claim_the_same_weights_exactly_one_wins(store: Store):
    forked = context()
    start, answers = forked.Barrier(3), forked.Queue()
    rivals = [artifact(store, f"task-{n}", "packnet") for n in range(3)]
    children = [forked.Process(target=_register_in_child, args=(store.path, data, start, answers)) for data in rivals]
    for child in children:
        child.start()
    told = sorted(answers.get(timeout=100) for _ in children)
    for child in children:
        child.join()
    assert told == ["in", "refused", "refused"]
    assert store.verify() == []


def test_the_same_artifact_from_many_threads_is_one_version(store: Store):
    data = artifact(store, "birds", "packnet")
    created: list[bool] = []
    together(*(lambda: created.append(store.register(data).created) for _ in range(4)))
    assert sorted(created) == [False, False, False, True]
    assert len(store.versions()) == 1
    assert [event.kind for event in store.events()] == ["create", "register", "label"]


def test_order_free_versions_register_side_by_side_while_others_read(store: Store):
    wanted = {f"task-{n}": artifact(store, f"task-{n}", "clr", seed=n) for n in range(4)}
    torn: list[object] = []

    def read() -> None:
        for _ in range(30):
            torn.extend(task for task in store.tasks() if set(task.labels) != {"stable"} or len(task.versions) != 1)

    together(read, *(lambda data=data: store.register(data) for data in wanted.values()))
    assert torn == []
    assert [task.name for task in store.tasks()] == sorted(wanted)
    assert store.verify() == []


def test_the_claims_of_a_lineage_are_the_decoded_ones_whether_the_store_has_it_or_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    birds = put(store, "birds", "packnet")
    owls = put(store, "owls", "packnet", on=birds, seed=1)
    lineage = [*store.lineage(owls), read_artifact(artifact(store, "finches", "packnet", on=owls, seed=2))]
    expected = lineage_claims(store.backbone, lineage)
    assert all(any(bool(mask.any()) for mask in claim.values()) for claim in expected)
    decoded: list[Sequence[Artifact]] = []

    def decode(backbone: Backbone, above: Sequence[Artifact]) -> list[Claim]:
        decoded.append(above)
        return lineage_claims(backbone, above)

    monkeypatch.setattr(store_module, "lineage_claims", decode)
    for known in (lineage[:-1], lineage):
        found = store.takers_of(known)
        assert decoded == ([] if known is not lineage else [lineage]), "those that it has are at hand"
        assert found.count == len(known)
        for one, other in zip(found.claims(), expected, strict=False):
            assert {name: mask.tolist() for name, mask in one.items() if mask.any()} == {
                name: mask.tolist() for name, mask in other.items() if mask.any()
            }


def test_what_stands_on_no_claim_is_registered_whatever_became_of_those_of_others(store: Store):
    blob = store.blobs.path(put(store, "birds", "packnet"))
    owls = artifact(store, "owls", "linear")
    blob.write_bytes(blob.read_bytes()[:-1])
    with Store.open(store.path) as elsewhere:
        elsewhere.register(owls)
        assert [task.name for task in elsewhere.tasks()] == ["birds", "owls"]


@pytest.mark.parametrize("lost", [True, False])
def test_registering_a_known_version_again_mends_its_damaged_blob_and_tells_those_who_serve_it(
    store: Store, lost: bool
):
    data = artifact(store, "birds", "clr")
    birds = store.register(data).version.version
    store.register(data)
    before, blob = store.last_event(), store.blobs.path(birds)
    blob.unlink() if lost else blob.write_bytes(data[:-1])
    again = store.register(data, label="canary")
    assert (again.created, again.version.labels) == (False, ("canary", "stable"))
    assert blob.read_bytes() == data
    assert [(event.kind, event.version) for event in store.events(before)] == [("register", birds), ("label", birds)]
    assert store.verify() == []


def test_the_manifests_that_lists_have_read_are_kept_within_a_number_of_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    for name in ("ants", "bats", "cats"):
        put(store, name, "clr")
    texts = [dump_manifest(version.manifest) for version in store.versions()]
    one = transaction.MANIFEST_SHARE * max(map(len, texts))
    parsed: list[str] = []

    def parse(text: str, *rest: Any) -> Any:
        parsed.append(text)
        return parse_manifest(text, *rest)

    monkeypatch.setattr(transaction, "parse_manifest", parse)
    for limit, again in ((3 * one, 0), (2 * one, 3)):  # of three in turn, room for two keeps none until it comes again
        kept: Recent[Any] = Recent(limit)
        monkeypatch.setattr(transaction, "_manifests", kept)
        store.versions()
        parsed.clear()
        assert [version.task for version in store.versions()] == ["ants", "bats", "cats"]
        assert (len(parsed), kept.size <= limit) == (again, True)


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_manifest_takes_no_more_memory_than_it_is_counted_for(store: Store, classes: int):
    data = zoo.task(store.backbone, "many", "clr", classes=classes)
    text = dump_manifest(read_artifact(data).manifest)
    gc.collect()
    tracemalloc.start()
    kept = [parse_manifest(text + " " * n, TaskManifest, "row") for n in range(10)]
    taken = tracemalloc.get_traced_memory()[0] / len(kept) + len(text)
    tracemalloc.stop()
    assert taken <= 1.2 * transaction.MANIFEST_SHARE * len(text)


def test_a_claim_that_was_just_registered_and_deleted_is_not_remembered(store: Store):
    birds = put(store, "birds", "packnet", label="none")
    store.delete_version("birds", birds)
    owls = put(store, "owls", "packnet")
    taken = lineage_claims(store.backbone, store.lineage(owls))
    free = store.free_positions()
    assert all(torch.equal(free[name], mask) for name, mask in free_positions(store.backbone, taken).items())


def test_claims_that_are_read_ahead_a_few_at_a_time_are_those_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    birds = put(store, "birds", "packnet")
    owls = put(store, "owls", "packnet", on=birds)
    finches = put(store, "finches", "packnet", on=owls)
    monkeypatch.setattr(ledger, "FEW", 2)
    with Store.open(store.path) as again:
        again.read_claims()
        taken = lineage_claims(store.backbone, store.lineage(finches))
        free = again.free_positions()
        assert all(torch.equal(free[name], mask) for name, mask in free_positions(store.backbone, taken).items())


def test_a_claim_is_known_to_who_registered_it_or_asked_for_it_and_to_no_other(store: Store):
    birds = put(store, "birds", "packnet")
    owls = put(store, "owls", "packnet", on=birds)
    view = put(store, "view", "clr", on=owls)
    expected = dict(zip((birds, owls), lineage_claims(store.backbone, store.lineage(owls)), strict=True))
    with Store.open(store.path) as again:
        assert again.known_claim(owls) is None, "nobody asked"
        again.claim(owls)
        for one in (store, again):
            known = {version: one.known_claim(version) for version in expected}
            for version, claim in known.items():
                assert claim is not None
                assert {name: mask.tolist() for name, mask in claim.items()} == {
                    name: mask.tolist() for name, mask in expected[version].items()
                }
            assert one.known_claim(view) is None, "it took nothing"


def test_who_asks_for_a_known_claim_waits_for_no_decoding(store: Store):
    birds = put(store, "birds", "packnet")
    store.claim(birds)
    with store._ledger._lock:
        assert store.known_claim(birds) is None
    assert store.known_claim(birds) is not None


def test_reading_claims_ahead_stops_when_it_is_told_to(store: Store):
    put(store, "birds", "packnet")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return True

    store.read_claims(stop)
    assert asked == [0]
