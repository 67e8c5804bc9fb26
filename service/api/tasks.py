"""/tasks: register, list, describe, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response
from torch import Tensor

from masks_store import Artifact, Backbone, Registered, Store, View

from ..edge.multipart import parse_multipart
from ..edge.record import record_of
from ..errors import Problem, retry_after
from ..runtime import Runtime, caller_of, runtime_of
from ..schemas import NoQuery, PageQuery, RegisteredOut, RegisterQuery, RetireQuery, TaskOut, decode_cursor
from .answers import Json
from .describe import describe_task, write_page
from .payloads import media_type

LEASES_S = 5.0
"""How long a delete waits for the requests that use what it deletes, before it answers 202."""
READ_AT_ONCE = 128
"""Tasks that a list reads with all their versions in one look at the store."""


async def register_task(request: Request, query: Annotated[RegisterQuery, Query()]) -> Response:
    """Register an artifact: a new task, or a new version of a known one.

    The artifact is the raw body (`application/octet-stream`) or the multipart part `artifact`. It is checked whole,
    its probe included, before anything changes. The same artifact again changes only the label, and is answered 200.
    """
    runtime, record = runtime_of(request), record_of(request)
    content_type = request.headers.get("content-type")
    if media_type(content_type) not in ("", "application/octet-stream", "multipart/form-data"):
        raise Problem(
            415,
            "an artifact is sent as the raw body with Content-Type application/octet-stream, or as the part "
            "`artifact` of multipart/form-data",
        )
    if runtime.uploads.locked():
        raise Problem(
            503,
            f"{runtime.settings.max_uploads} artifact(s) are being registered already; try again",
            headers=retry_after(2.0),
            reason="max_uploads",
        )
    settings = runtime.settings
    async with (
        runtime.uploads,
        runtime.bodies.read(request, settings.max_artifact_bytes, settings.artifact_timeout_s, "artifact") as body,
    ):
        started = time.monotonic()
        record.took("read", started - record.started)
        actor = caller_of(request).name
        label = query.label or "auto"
        registered, probing = await asyncio.get_running_loop().run_in_executor(
            runtime.registering, _register, runtime, content_type, body, label, actor
        )
        record.took("register", time.monotonic() - started - probing)
        if probing:  # an artifact that is there already is not probed again
            record.took("probe", probing)
    await runtime.take_over()
    version = registered.version
    record.tasks.append(version.task)
    record.versions.append(version.version)
    task = describe_task(registered.task, registered.versions)
    answer = RegisteredOut(**task.model_dump(), version=version.version)
    location = {"Location": f"/tasks/{version.task}/versions/{version.version}"}
    return Json(answer, 201 if registered.created else 200, location if registered.created else None)


def _register(
    runtime: Runtime, content_type: str | None, body: bytes, label: str, actor: str
) -> tuple[Registered, float]:
    """(What a body's artifact was registered as, the seconds of its probe, its wait for the engine included)."""
    if media_type(content_type) == "multipart/form-data":
        only = Problem(
            400, "expected one part, named `artifact`; the label goes into the query: POST /tasks?label=stable"
        )
        parts = parse_multipart(content_type or "", body, 1, only)
        if [part.name for part in parts] != ["artifact"]:
            raise only
        body = parts[0].data
    if not body:
        raise Problem(400, "the artifact is empty")

    probing = 0.0

    def prober(backbone: Backbone, lineage: Sequence[Artifact], view: View) -> Tensor:
        nonlocal probing
        started = time.monotonic()
        logits = runtime.serving.prober(backbone, lineage, view)
        probing += time.monotonic() - started
        return logits

    registered = runtime.store.register(body, label=label, actor=actor, prober=prober)
    return registered, probing


async def list_tasks(request: Request, query: Annotated[PageQuery, Query()]) -> Response:
    """List the tasks by name, page by page. A key that is for some tasks sees only these."""
    runtime, caller = runtime_of(request), caller_of(request)

    def listed() -> bytes:
        after = None if query.cursor is None else decode_cursor(query.cursor)
        return write_page("tasks", _tasks_after(runtime.store, after, query.limit + 1, caller.tasks), query.limit)

    return Json(await asyncio.to_thread(listed))


def _tasks_after(
    store: Store, after: str | None, most: int, among: tuple[str, ...] | None
) -> Iterator[tuple[str, TaskOut]]:
    """Names and descriptions, read some at once: a page may end long before `most`."""
    while most > 0:
        wanted = min(most, READ_AT_ONCE)
        found = store.task_page(after=after, limit=wanted, among=among)
        for task, versions in found:
            yield task.name, describe_task(task, versions)
            after = task.name
        most = most - wanted if len(found) == wanted else 0


async def get_task(request: Request, task: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Describe a task."""
    check_use(request, task)
    runtime = runtime_of(request)
    answer = await asyncio.to_thread(_described, runtime.store, task)
    record_of(request).tasks.append(task)
    return Json(answer)


async def delete_task(request: Request, task: str, query: Annotated[RetireQuery, Query()]) -> Response:
    """Delete a task with its labels and all its versions, or nothing.

    With `retire=true` those of its versions that other tasks are built on stop answering and keep their weights for
    them. 204 once no request uses it any more; 202 where that takes longer than five seconds.
    """
    runtime, record = runtime_of(request), record_of(request)
    actor = caller_of(request).name

    def deleted(store: Store) -> tuple[str, ...]:
        versions = store.task(task).versions
        record.tasks.append(task)
        store.delete_task(task, retire=query.retire, actor=actor)
        return versions

    versions = await runtime.writes.run(deleted)
    return await gone(runtime, versions)


async def gone(runtime: Runtime, versions: tuple[str, ...]) -> Response:
    """The answer to a delete: 204 when the engine has let the versions go, 202 while requests still use one.

    The versions are deleted by now, so whatever fails here is no error of the request.
    """
    if not await runtime.take_over():
        return Json({"status": "draining"}, 202)
    unloading = (runtime.serving.unload(version, LEASES_S) for version in versions)
    unloaded = await asyncio.gather(*unloading, return_exceptions=True)
    return Response(status_code=204) if all(done is True for done in unloaded) else Json({"status": "draining"}, 202)


def check_use(request: Request, task: str) -> None:
    """Refuse a key that is not for this task.

    Raises:
        Problem: 403.
    """
    caller = caller_of(request)
    if not caller.may_use(task):
        raise Problem(403, f"the key {caller.name!r} is not for this task")


def _described(store: Store, task: str) -> TaskOut:
    return describe_task(store.task(task), store.versions(task))
