"""/tasks/{task}/versions and /tasks/{task}/labels: what a task has been, and which of it answers."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from masks_store import InvalidInput, NotFound, PreconditionFailed, Store, Version, check_label

from ..edge.bodies import SMALL
from ..edge.record import record_of
from ..errors import Problem
from ..runtime import caller_of, runtime_of
from ..schemas import LabelIn, LabelledOut, NoQuery, PageQuery, RetireQuery
from .answers import Json, etag, parse_etags, weakly_matches
from .describe import describe_version, items_after, write_page
from .files import FileBody
from .payloads import body_faults, media_type
from .tasks import check_use, gone

SAFETENSORS = "application/octet-stream"


async def list_versions(request: Request, task: str, query: Annotated[PageQuery, Query()]) -> Response:
    """List a task's versions in the order of their registration, retired ones too, page by page."""
    check_use(request, task)
    runtime = runtime_of(request)

    def listed() -> bytes:
        found = items_after(runtime.store.versions(task), lambda version: version.seq, query.cursor)
        return write_page("versions", ((str(one.seq), describe_version(one)) for one in found), query.limit)

    answer = await asyncio.to_thread(listed)
    record_of(request).tasks.append(task)
    return Json(answer)


async def get_version(request: Request, task: str, version: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Describe a version, retired ones too."""
    check_use(request, task)
    found = await asyncio.to_thread(find_any, runtime_of(request).store, task, version)
    _note(request, found)
    return Json(describe_version(found))


async def download(request: Request, task: str, version: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Download a version's artifact: the very bytes that were registered."""
    store = runtime_of(request).store
    found = await asyncio.to_thread(find_any, store, task, version)
    _note(request, found)
    headers = {"ETag": etag(found.version), "Cache-Control": "private, no-cache"}
    known = request.headers.get("if-none-match")
    if known is not None and weakly_matches(known, found.version):
        return Response(status_code=304, headers=headers)
    name = f"{found.task}-{found.version.removeprefix('sha256:')[:12]}.safetensors"
    headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if record_of(request).head:
        return Response(media_type=SAFETENSORS, headers={**headers, "Content-Length": str(found.size)})
    file = await asyncio.to_thread(store.open_artifact, found.version)
    return FileBody(file, found.size, SAFETENSORS, headers)


async def delete_version(request: Request, task: str, version: str, query: Annotated[RetireQuery, Query()]) -> Response:
    """Delete a version that has no label and that no other is built on.

    With `retire=true` one that others are built on stops answering and keeps its weights for them. 204 once no request
    uses it any more; 202 where that takes longer than five seconds.
    """
    runtime, actor = runtime_of(request), caller_of(request).name

    record = record_of(request)

    def deleted(store: Store) -> str:
        store.task(task)
        record.tasks.append(task)
        digest = find_any(store, task, version).version
        store.delete_version(task, digest, retire=query.retire, actor=actor)
        return digest

    digest = await runtime.writes.run(deleted)
    return await gone(runtime, (digest,))


async def get_label(request: Request, task: str, label: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Tell which version a label names; the ETag is for `If-Match`."""
    check_use(request, task)
    labels = (await asyncio.to_thread(runtime_of(request).store.task, task)).labels
    record_of(request).tasks.append(task)
    if label not in labels:
        raise NotFound(f"task {task!r} has no label {label!r}")
    version = labels[label]
    headers = {"ETag": etag(version)}
    known = request.headers.get("if-none-match")
    if known is not None and weakly_matches(known, version):
        return Response(status_code=304, headers=headers)
    return Json(LabelledOut(task=task, label=label, version=version), headers=headers)


async def put_label(request: Request, task: str, label: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Point a label at a version; also the rollback.

    `If-Match` with the label's version as a quoted ETag moves it only from there; `If-None-Match: *` only makes a new
    one; with neither the label is moved whatever it named. 201 for a new label, 200 for one that was there.
    """
    runtime, actor = runtime_of(request), caller_of(request).name
    wanted = await _wanted(request, label)
    if_match = request.headers.get("if-match")
    if_none_match = request.headers.get("if-none-match")
    if if_none_match is not None and parse_etags(if_none_match) != ["*"]:
        raise Problem(400, "If-None-Match must be `*` here")

    record = record_of(request)

    def moved(store: Store) -> tuple[Version, bool]:
        before = store.task(task).labels.get(label)
        record.tasks.append(task)
        expected = _expected(if_match, task, label, before)
        version = store.set_label(
            task, label, wanted, if_match=expected, if_none_match=if_none_match is not None, actor=actor
        )
        return version, before is None

    found, new = await runtime.writes.run(moved)
    await runtime.take_over()
    record.versions.append(found.version)
    headers = {"ETag": etag(found.version)}
    if new:
        headers["Location"] = f"/tasks/{task}/labels/{label}"
    return Json(LabelledOut(task=task, label=label, version=found.version), 201 if new else 200, headers)


async def delete_label(request: Request, task: str, label: str, query: Annotated[NoQuery, Query()]) -> Response:
    """Take a label away; `If-Match` only where it still names that version."""
    runtime, actor = runtime_of(request), caller_of(request).name
    if_match = request.headers.get("if-match")

    record = record_of(request)

    def dropped(store: Store) -> None:
        before = store.task(task).labels.get(label)
        record.tasks.append(task)
        expected = _expected(if_match, task, label, before)
        store.drop_label(task, label, if_match=expected, actor=actor)

    await runtime.writes.run(dropped)
    await runtime.take_over()
    return Response(status_code=204)


def find_any(store: Store, task: str, version: str) -> Version:
    """The version that a path names; by its whole digest also one that is retired.

    Raises:
        NotFound, InvalidInput: as `Store.resolve`.
    """
    try:
        return store.resolve(task, version)
    except NotFound:
        digest = f"sha256:{version.removeprefix('sha256:')}"
        for found in store.versions(task):
            if found.version == digest:
                return found
        raise


def _expected(header: str | None, task: str, label: str, before: str | None) -> str | None:
    """The one version that If-Match asks for: of several the one that the label names now."""
    if header is None:
        return None
    tags = parse_etags(header)
    if tags is None:
        raise Problem(400, 'If-Match must be a version in double quotes, or `*`: If-Match: "sha256:…"')
    if before is not None and (tags == ["*"] or before in tags):
        return before
    if not tags or tags == ["*"]:
        raise PreconditionFailed(f"label {label} of task {task!r} is not there")
    return tags[0]


async def _wanted(request: Request, label: str) -> str:
    """The version that the body names; what is wrong with the label is told beside what is wrong with that."""
    if media_type(request.headers.get("content-type")) != "application/json":
        raise Problem(415, 'expected JSON {"version": …} with Content-Type application/json')
    settings = runtime_of(request).settings
    async with runtime_of(request).bodies.read(request, SMALL, settings.body_timeout_s) as body:
        try:
            return LabelIn.model_validate_json(body).version
        except ValidationError as error:
            faults = body_faults(error)
            try:
                check_label(label)
            except InvalidInput as wrong:
                faults += wrong.faults
            raise Problem(
                400, faults[0] if len(faults) == 1 else f"{len(faults)} faults in the request", faults
            ) from error


def _note(request: Request, version: Version) -> None:
    record = record_of(request)
    record.tasks.append(version.task)
    record.versions.append(version.version)
