"""Whatever is done to a store in whatever order, it is as a small model says, also after it is opened again."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from masks_store import (
    Artifact,
    ClaimOverlap,
    MissingParent,
    NotFound,
    Store,
    TaskpackError,
    VersionInUse,
    digest_of,
    lineage_claims,
    overlap,
    read_artifact,
    read_backbone,
)
from tests import zoo

from .stores import backbone_file, new_store, same_logits

LABELS = ("stable", "canary")
TASKS = ("ants", "bees", "cats")


@dataclass(frozen=True)
class Item:
    """An artifact that may be registered, and what the model must know of it."""

    data: bytes
    version: str
    task: str
    parent: str | None
    rivals: frozenset[str]


@cache
def shelf() -> tuple[Item, ...]:
    """Artifacts of three tasks, some built on others, some claiming the same weights as others."""
    backbone = read_backbone(backbone_file().data)
    lineages: dict[str, list[Artifact]] = {}
    plan = [
        ("a1", "ants", "packnet", None, 1),
        ("a2", "ants", "packnet", None, 2),  # takes some of what a1 takes
        ("a3", "ants", "bn", "a1", 3),
        ("b1", "bees", "packnet", "a1", 4),
        ("b2", "bees", "linear", "b1", 5),
        ("b3", "bees", "clr", None, 6),
        ("c1", "cats", "linear", "a3", 7),
        ("c2", "cats", "packnet", "a2", 8),
    ]
    for name, task, method, on, seed in plan:
        ancestors = lineages[on] if on else []
        data = zoo.task(backbone, task, method, ancestors=ancestors, seed=seed, share=0.3)
        lineages[name] = [*ancestors, read_artifact(data)]
    claims = {name: lineage_claims(backbone, lineage)[-1] for name, lineage in lineages.items()}
    versions = {name: lineage[-1].version for name, lineage in lineages.items()}
    return tuple(
        Item(
            data=zoo_bytes(lineages[name][-1]),
            version=versions[name],
            task=task,
            parent=versions[on] if on else None,
            rivals=frozenset(versions[o] for o in claims if o != name and overlap(claims[name], {"": claims[o]})),
        )
        for name, task, _, on, _ in plan
    )


def zoo_bytes(artifact: Artifact) -> bytes:
    from masks_store import write_artifact

    data = write_artifact(artifact.manifest, artifact.tensors)
    assert digest_of(data) == artifact.version
    return data


@dataclass
class Model:
    """What the store should hold: version -> state, and labels; in the order of registration."""

    states: dict[str, str] = field(default_factory=dict[str, str])
    labels: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])

    def ready(self, task: str) -> list[str]:
        return [version for version, state in self.states.items() if state == "ready" and ITEM[version].task == task]

    def of(self, task: str) -> list[str]:
        return [version for version in self.states if ITEM[version].task == task]

    def children(self, versions: list[str]) -> list[str]:
        return [version for version in self.states if ITEM[version].parent in versions]

    def labelled(self, version: str) -> bool:
        return version in self.labels.values()


ITEM: dict[str, Item] = {}
numbers = st.integers(0, 7)
tasks = st.sampled_from(TASKS)
labels = st.sampled_from(LABELS)


class Machine(RuleBasedStateMachine):
    """Registers, labels, deletes, retires and opens again, here and in the model."""

    @initialize()
    def create(self) -> None:
        ITEM.update({item.version: item for item in shelf()})
        self.root = Path(tempfile.mkdtemp())
        self.store = new_store(self.root / "store")
        self.model = Model()

    @rule(number=numbers, label=st.sampled_from(("auto", "none", *LABELS)))
    def register(self, number: int, label: str) -> None:
        item, model = shelf()[number], self.model
        known = model.states.get(item.version)
        expected: type[TaskpackError] | None = None
        if known is None and item.parent is not None and item.parent not in model.states:
            expected = MissingParent
        elif known is None and item.rivals & model.states.keys():
            expected = ClaimOverlap
        if expected is not None:
            with pytest.raises(expected):
                self.store.register(item.data, label=label, prober=same_logits)
            return
        alone = not set(model.ready(item.task)) - {item.version}
        registered = self.store.register(item.data, label=label, prober=same_logits)
        assert registered.created == (known != "ready")
        model.states[item.version] = "ready"
        if label == "auto" and not model.labelled(item.version):
            label = "stable" if alone else "canary"
        if label in LABELS:
            model.labels[item.task, label] = item.version

    @rule(number=numbers, label=labels)
    def set_label(self, number: int, label: str) -> None:
        item = shelf()[number]
        if self.model.states.get(item.version) == "ready":
            self.store.set_label(item.task, label, item.version)
            self.model.labels[item.task, label] = item.version
        else:
            with pytest.raises(NotFound):
                self.store.set_label(item.task, label, item.version)

    @rule(task=tasks, label=labels)
    def drop_label(self, task: str, label: str) -> None:
        if self.model.labels.pop((task, label), None):
            self.store.drop_label(task, label)
        else:
            with pytest.raises(NotFound):
                self.store.drop_label(task, label)

    @rule(number=numbers, retire=st.booleans())
    def delete_version(self, number: int, retire: bool) -> None:
        item, model = shelf()[number], self.model
        children = model.children([item.version])
        expected: type[TaskpackError] | None = None
        if item.version not in model.states:
            expected = NotFound
        elif model.labelled(item.version) or (children and not retire):
            expected = VersionInUse
        if expected is not None:
            with pytest.raises(expected):
                self.store.delete_version(item.task, item.version, retire=retire)
        elif children:
            assert self.store.delete_version(item.task, item.version, retire=retire) == "retired"
            model.states[item.version] = "retired"
        else:
            assert self.store.delete_version(item.task, item.version, retire=retire) == "deleted"
            del model.states[item.version]

    @rule(task=tasks, retire=st.booleans())
    def delete_task(self, task: str, retire: bool) -> None:
        model = self.model
        own = model.of(task)
        others = [version for version in model.children(own) if ITEM[version].task != task]
        if not own or (others and not retire):
            with pytest.raises(VersionInUse if own else NotFound):
                self.store.delete_task(task, retire=retire)
            return
        self.store.delete_task(task, retire=retire)
        needed: set[str | None] = set()
        for version in others:
            parent = ITEM[version].parent
            while parent is not None:
                needed.add(parent)
                parent = ITEM[parent].parent
        for version in own:
            if version in needed:
                model.states[version] = "retired"
            else:
                del model.states[version]
        model.labels = {key: version for key, version in model.labels.items() if key[0] != task}

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.root / "store")

    @invariant()
    def is_as_the_model_says(self) -> None:
        model = self.model
        found = {version.version: version for version in self.store.versions()}
        assert {version: found[version].state for version in found} == model.states
        wanted = {task: {label: v for (t, label), v in model.labels.items() if t == task} for task in TASKS}
        assert {t.name: (dict(t.labels), list(t.versions)) for t in self.store.tasks()} == {
            task: (wanted[task], model.of(task)) for task in TASKS if model.of(task)
        }
        assert self.store.task_count() == sum(1 for task in TASKS if model.of(task))
        for (task, label), version in model.labels.items():
            assert self.store.resolve(task, label).version == version

    @invariant()
    def claims_are_those_of_the_versions_there_are(self) -> None:
        holders = [v for v in self.model.states if self.store.artifact(v).manifest.method == "packnet"]
        assert sorted(self.store.claims()) == sorted(holders)
        free = sum(count for count, _ in self.store.capacity_left().values())
        all_free = sum(int((~kept).sum()) for kept in self.store.backbone.kept.values())
        taken = sum(int(mask.sum()) for claim in self.store.claims().values() for mask in claim.values())
        assert free == all_free - taken

    def teardown(self) -> None:
        try:
            assert self.store.verify() == []
        finally:
            self.store.close()
            shutil.rmtree(self.root)


TestStore = Machine.TestCase
TestStore.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestStoreLong(Machine.TestCase):
    """The same, longer."""

    settings = settings(
        max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


def test_the_shelf_has_versions_that_build_on_others_and_versions_that_overlap():
    items = shelf()
    assert sum(item.parent is not None for item in items) == 5
    assert any(item.rivals for item in items)
    assert any(not item.rivals for item in items)
