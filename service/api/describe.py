"""Tasks and versions as the API describes them, and pages of them."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pydantic import BaseModel
from pydantic_core import to_json

from masks_store import Task, Version, shown_version

from ..errors import Problem
from ..schemas import TaskOut, VersionOut, decode_cursor

T = TypeVar("T")

PAGE_BYTES = 4 << 20
"""Where a page ends before its limit: a thousand entries may name a million classes each."""


def describe_version(version: Version) -> VersionOut:
    """A version as JSON."""
    manifest = version.manifest
    return VersionOut(
        version=version.version,
        task=version.task,
        method=version.method,
        parent=version.parent,
        state=version.state,
        size=version.size,
        created=version.created,
        labels=list(version.labels),
        classes=list(manifest.classes),
        metrics=manifest.metrics.model_dump(mode="json"),
        backbone=manifest.backbone,
    )


def describe_task(task: Task, versions: Sequence[Version]) -> TaskOut:
    """A task as JSON, with the method and classes of its stable version, or of its newest.

    Args:
        task: the task.
        versions: all of its versions, in the order of their registration.
    """
    shown = shown_version(task, versions)
    return TaskOut(
        task=task.name,
        method=shown.method,
        classes=list(shown.manifest.classes),
        labels=dict(task.labels),
        versions=len(versions),
        created=task.created,
    )


def items_after(items: Sequence[T], key: Callable[[T], int], cursor: str | None) -> Sequence[T]:
    """What follows the page before.

    Args:
        items: in the order of their keys.
        key: an item's number; a cursor holds that of the last item of its page, which may be gone meanwhile.
        cursor: of the page before; None for the first page.

    Raises:
        Problem: 400 for a cursor that is none.
    """
    if cursor is None:
        return items
    last = decode_cursor(cursor)
    if not (last.isdecimal() and len(last) < 20):
        raise Problem(400, "cursor: not one that this server gave")
    return items[bisect_right(items, int(last), key=key) :]


def write_page(member: str, entries: Iterable[tuple[str, BaseModel]], limit: int) -> bytes:
    """A page as JSON, and in it the cursor of the next; entry by entry, for a thread that is not the event loop's.

    Args:
        member: what the list is called.
        entries: names for the cursor, and what they name, from the first of this page on; no more are taken than fit.
        limit: most entries; long ones end the page at `PAGE_BYTES`, but for a first that is longer.
    """
    written: list[bytes] = []
    size, last, following = 0, "", None
    for name, entry in entries:
        if len(written) == limit or size >= PAGE_BYTES:
            following = encode_cursor(last)
            break
        written.append(to_json(entry))
        size, last = size + len(written[-1]), name
    return b'{"%b":[%b],"next":%b}' % (member.encode(), b",".join(written), to_json(following))


def encode_cursor(name: str) -> str:
    """The cursor of the page that follows the item of this name."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
