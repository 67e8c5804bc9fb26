"""Tasks and versions as the API describes them, and pages of them."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from masks_store import Task, Version, shown_version

from ..errors import Problem
from ..schemas import TaskOut, VersionOut

T = TypeVar("T")


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


def page_of(
    items: Sequence[T], key: Callable[[T], int], cursor: str | None, limit: int
) -> tuple[Sequence[T], str | None]:
    """A page of a list, and the cursor of the next.

    Args:
        items: in the order of their keys.
        key: an item's number; a cursor holds that of the last item of its page, which may be gone meanwhile.
        cursor: of the page before; None for the first page.
        limit: most items.

    Raises:
        Problem: 400 for a cursor that is none.
    """
    start = 0
    if cursor is not None:
        last = decode_cursor(cursor)
        if not (last.isdecimal() and len(last) < 20):
            raise _no_cursor()
        start = bisect_right(items, int(last), key=key)
    page = items[start : start + limit]
    more = start + limit < len(items)
    return page, encode_cursor(str(key(page[-1]))) if more and page else None


def encode_cursor(name: str) -> str:
    """The cursor of the page that follows the item of this name."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """The name in a cursor.

    Raises:
        Problem: 400 for a cursor that is none.
    """
    try:
        name = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise _no_cursor() from None
    return name


def _no_cursor() -> Problem:
    return Problem(400, "cursor: not one that this server gave")
