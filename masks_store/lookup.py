"""How a request's words become a version: a digest, a unique prefix of one, or a label."""

from __future__ import annotations

import re

from .errors import InvalidInput, NotFound
from .records import LABELS, Task, Version
from .transaction import Transaction

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


def check_label(label: str) -> None:
    """Raise `InvalidInput` unless `label` is one of the labels there are."""
    if label not in LABELS:
        raise InvalidInput(f"{label!r} is not a label; the labels are {' and '.join(LABELS)}")


def check_version(version: str) -> None:
    """Raise `InvalidInput` unless `version` is a label, a digest, or what may be the beginning of one."""
    if version not in LABELS and not _PREFIX.fullmatch(version):
        raise InvalidInput(
            f"{version!r} is not a version: give a label ({', '.join(LABELS)}), a digest (sha256:…) or at least 12 of "
            "its hex digits"
        )


def find_task(transaction: Transaction, name: str) -> Task:
    """The task of that name, or `NotFound`."""
    found = transaction.tasks(name)
    if not found:
        raise NotFound(f"no task {name!r} in this store; `taskpack ls` and GET /tasks list those it has")
    return found[0]


def find_version(transaction: Transaction, task: str, version: str, *, retired: bool = False) -> Version:
    """The version that a request means.

    Args:
        transaction: one reading of the registry.
        task: the task's name.
        version: `stable`, `canary`, a digest, or at least 12 of its hex digits, with or without `sha256:`.
        retired: also find versions that answer no more.

    Raises:
        NotFound: no such task, label or version, or it is retired.
        InvalidInput: not a version at all, or a prefix of several.
    """
    if version in LABELS:
        return _labelled(transaction, task, version)
    check_version(version)
    found = transaction.with_prefix(task, f"sha256:{version.removeprefix('sha256:')}")
    answering = found if retired else [v for v in found if v.state == "ready"]
    if len(answering) > 1:
        names = [v.version for v in answering]
        raise InvalidInput(f"{version!r} may be {len(names)} versions of task {task!r}: {', '.join(names)}", names)
    if not answering:
        find_task(transaction, task)
        why = "is retired: others are built on it, but it answers no more" if found else "is not there"
        raise NotFound(f"version {version!r} of task {task!r} {why}")
    return answering[0]


def _labelled(transaction: Transaction, task: str, label: str) -> Version:
    labels = transaction.labels(task)
    if label not in labels:
        find_task(transaction, task)
        has = f"its labels: {', '.join(labels)}" if labels else "it has none"
        raise NotFound(f"task {task!r} has no version labelled {label}; {has}; name a version, or set the label")
    version = transaction.version(labels[label])
    if version is None:
        raise NotFound(f"the version that {label} of task {task!r} points at is not there")
    return version
