"""Taking versions and tasks away: nothing that others are built on, nothing that a label points at.

A deleted version's claim is free at once. Its blob stays on disk until `gc`, a later command, removes what nothing
refers to. A retired version keeps its row, its blob and its claim, for the versions that are built on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from .errors import VersionInUse
from .lookup import find_task, find_version
from .process import origin
from .records import Version
from .transaction import Transaction


def delete_version(
    transaction: Transaction, task: str, version: str, *, retire: bool, actor: str
) -> Literal["deleted", "retired"]:
    """See `Store.delete_version`."""
    found = find_version(transaction, task, version, retired=True)
    if found.labels:
        names = " and ".join(found.labels)
        commands = ", ".join(f"`taskpack label STORE {task} {label} --remove`" for label in found.labels)
        raise VersionInUse(
            f"version {found.version} of task {task!r} is labelled {names}: take the label away or move it first "
            f"({commands})",
            [f"{task}: labelled {label}" for label in found.labels],
        )
    children = transaction.children([found.version])
    if children and not retire:
        raise _in_use(f"version {found.version} of task {task!r}", children)
    if children:
        _retire(transaction, found, actor)
        return "retired"
    _delete(transaction, found, actor)
    return "deleted"


def delete_task(transaction: Transaction, task: str, *, retire: bool, actor: str) -> None:
    """See `Store.delete_task`."""
    find_task(transaction, task)
    versions = transaction.versions(task)
    children = [child for child in transaction.children([v.version for v in versions]) if child.task != task]
    if children and not retire:
        raise _in_use(f"task {task!r}", children)
    needed = _ancestors(children, transaction.parents())
    for label, version in transaction.labels(task).items():
        drop_label(transaction, task, label, version, actor)
    for version in reversed(versions):  # children before their parents
        if version.version in needed:
            _retire(transaction, version, actor)
        else:
            _delete(transaction, version, actor)


def drop_label(transaction: Transaction, task: str, label: str, version: str, actor: str) -> None:
    """Take away a label that points at `version`."""
    transaction.remove_label(task, label)
    transaction.log(actor, "unlabel", task, version, origin() | {"label": label})


def _delete(transaction: Transaction, version: Version, actor: str) -> None:
    transaction.advance("generation")
    transaction.remove_version(version)
    transaction.log(actor, "delete", version.task, version.version, origin() | {"method": version.method})


def _retire(transaction: Transaction, version: Version, actor: str) -> None:
    if version.state == "retired":
        return
    transaction.advance("generation")
    transaction.set_state(version.version, "retired")
    transaction.log(actor, "retire", version.task, version.version, origin())


def _ancestors(children: Sequence[Version], parents: dict[str, str | None]) -> Collection[str]:
    """Every version that one of `children` is built on, however far up."""
    found: set[str] = set()
    waiting = [child.parent for child in children]
    while waiting:
        version = waiting.pop()
        if version is not None and version not in found:
            found.add(version)
            waiting.append(parents.get(version))
    return found


def _in_use(what: str, children: Sequence[Version]) -> VersionInUse:
    names = [f"{child.task} {child.version}" for child in children]
    return VersionInUse(
        f"{what} cannot be deleted, others are built on it: {', '.join(names)}; delete those first, or retire it "
        "(--retire, ?retire=true): it stops answering and keeps its weights for them",
        names,
    )
