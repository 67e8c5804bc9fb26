"""Every call to a server, without input or output of its own.

A flow yields requests and is sent their responses; its return value is the typed result. `Client` drives flows with a
blocking transport, `AsyncClient` with an awaiting one, so a call is written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.client.errors import ClientError, NotAServer, Rejected, error_of
from service.client.results import ImageAnswer, Labelled, Prediction, Registered, Result, TaskInfo, VersionInfo

T = TypeVar("T")
R = TypeVar("R", bound=Result)
Image: TypeAlias = "bytes | str | os.PathLike[str]"
LabelChoice: TypeAlias = Literal["stable", "canary", "none"]
Part: TypeAlias = tuple[str, tuple[str, bytes]]
Progress: TypeAlias = Callable[[int], None]

CREATED, NO_CONTENT, UNAVAILABLE = 201, 204, 503
IMAGES_PER_REQUEST = 32
BYTES_PER_REQUEST = 24 << 20  # the server's default limit is 32 MiB for the whole body
OF_ONE_IMAGE = (413, 415, 422)
"""What a server answers to a request of one image because of that image."""
CHUNK = 1 << 18  # bytes sent between two reports of progress


@dataclass(frozen=True)
class Call:
    """One request: what to send, whether it needs the admin's key, and how long the server was told it may wait."""

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[Part] = ()
    admin: bool = False
    progress: Progress | None = None
    waits_s: float = 0.0


Flow: TypeAlias = Generator[Call, httpx.Response, T]


def predict(
    task: str,
    *images: Image,
    version: str | None = None,
    top_k: int | None = None,
    timeout_ms: int | None = None,
) -> Flow[Prediction]:
    """Ask a task about images, any number of them: over 32, or 24 MiB, go in several requests.

    Args:
        task: the task's name.
        images: paths of image files (JPEG, PNG, WebP), or their bytes.
        version: a digest, a unique prefix of it, or a label; `stable` by default.
        top_k: how many classes to answer with.
        timeout_ms: how long the server may keep the images of one request waiting.

    Raises:
        ClientError: see `service.client.errors`. A bad image among several is no error: its answer has status "error".
    """
    given = {"task": task, "version": version, "top_k": top_k, "timeout_ms": timeout_ms}
    params = {name: value for name, value in given.items() if value is not None}
    answers: list[Prediction] = []
    found: list[ImageAnswer] = []
    refused: ClientError | None = None
    for parts in _requests(images):
        response = yield Call("POST", "/predict", params, files=parts, waits_s=(timeout_ms or 0) / 1000)
        if len(parts) == 1 < len(images) and response.status_code in OF_ONE_IMAGE:
            refused = error_of(response)
            found.append(ImageAnswer(status="error", error=refused.detail))
            continue
        answers.append(_parsed(Prediction, response))
        found += answers[-1].predictions
        # A label that moves half-way, or a task that the images are to name, must not mix two versions in one answer.
        params = {**params, "task": answers[0].task, "version": answers[0].version}
    if refused is not None and not answers:
        raise refused  # the server has told of no version that could have answered
    return _joined(answers, found)


def _requests(images: Sequence[Image]) -> Iterator[list[Part]]:
    """The images in as few requests as the server takes; one without any where there are none, which it refuses."""
    parts: list[Part] = []
    size = 0
    for place, image in enumerate(images):
        data = _bytes(image)
        if parts and (len(parts) == IMAGES_PER_REQUEST or size + len(data) > BYTES_PER_REQUEST):
            yield parts
            parts, size = [], 0
        parts.append(("image", (_name(image, place), data)))
        size += len(data)
    yield parts


def tasks() -> Flow[list[TaskInfo]]:
    """List every task of the server, page by page."""
    return (yield from _pages(TaskInfo, "/tasks", "tasks"))


def task(name: str) -> Flow[TaskInfo]:
    """Describe one task."""
    return _parsed(TaskInfo, (yield Call("GET", f"/tasks/{_quoted(name)}")))


def versions(name: str) -> Flow[list[VersionInfo]]:
    """List the versions of a task, oldest first, page by page."""
    return (yield from _pages(VersionInfo, f"/tasks/{_quoted(name)}/versions", "versions"))


def artifact(name: str, version: str = "stable") -> Flow[bytes]:
    """Download a version's artifact."""
    path = f"/tasks/{_quoted(name)}/versions/{_quoted(version)}/artifact"
    return _checked((yield Call("GET", path, admin=True))).content


def register(
    data: bytes | str | os.PathLike[str],
    *,
    label: LabelChoice | None = None,
    progress: Progress | None = None,
) -> Flow[Registered]:
    """Register an artifact: the bytes of the file, or its path.

    Args:
        data: the artifact.
        label: which label to give it; by default `stable` for a new task, `canary` for a new version of a known one.
        progress: called with the number of bytes sent so far.

    Raises:
        Conflict: another backbone, a missing parent, an overlapping claim.
        Rejected: the file is not a sound artifact, with every fault.
    """
    content = data if isinstance(data, bytes) else Path(data).read_bytes()
    response = yield Call(
        "POST",
        "/tasks",
        {"label": label} if label else {},
        {"Content-Type": "application/octet-stream"},
        content,
        admin=True,
        progress=progress,
    )
    return _parsed(Registered, response).model_copy(update={"is_new": response.status_code == CREATED})


def set_label(
    name: str,
    label: str,
    version: str,
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
) -> Flow[Labelled]:
    """Point a label at a version; also the rollback.

    Args:
        name: the task.
        label: `stable` or `canary`.
        version: a digest, a unique prefix of it, or a label.
        if_match: move the label only if it still names this version.
        if_none_match: set the label only if there is none of that name.

    Raises:
        PreconditionFailed: the label is not where `if_match` or `if_none_match` says.
    """
    headers = {"Content-Type": "application/json"}
    if if_match is not None:
        headers["If-Match"] = f'"{if_match}"'
    if if_none_match:
        headers["If-None-Match"] = "*"
    body = json.dumps({"version": version}).encode()
    return _parsed(Labelled, (yield Call("PUT", _label_path(name, label), headers=headers, content=body, admin=True)))


def drop_label(name: str, label: str, *, if_match: str | None = None) -> Flow[None]:
    """Take a label away; with `if_match` only if it still names this version.

    Raises:
        PreconditionFailed: the label names another version.
    """
    headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
    _checked((yield Call("DELETE", _label_path(name, label), headers=headers, admin=True)))


def delete_task(name: str, *, retire: bool = False) -> Flow[bool]:
    """Delete a task with its labels and versions; with `retire` those that others are built on only stop answering.

    Returns:
        False while the server still waits for requests that use it.
    """
    return _gone((yield Call("DELETE", f"/tasks/{_quoted(name)}", _retire(retire), admin=True)))


def delete_version(name: str, version: str, *, retire: bool = False) -> Flow[bool]:
    """Delete one version, or with `retire` only stop it from answering.

    Returns:
        False while the server still waits for requests that use it.
    """
    path = f"/tasks/{_quoted(name)}/versions/{_quoted(version)}"
    return _gone((yield Call("DELETE", path, _retire(retire), admin=True)))


def info() -> Flow[dict[str, Any]]:
    """The server's effective settings, versions and device."""
    return _json((yield Call("GET", "/info")))


def ready() -> Flow[bool]:
    """Whether the server answers requests now; False while it starts or drains."""
    response = yield Call("GET", "/readyz")
    if response.status_code == UNAVAILABLE:
        return False
    _checked(response)
    return True


def as_admin(flow: Flow[T]) -> Flow[T]:
    """The same flow with the admin's key in each of its calls: for the look at a server before it is changed."""
    call = next(flow)
    try:
        while True:
            call = flow.send((yield replace(call, admin=True)))
    except StopIteration as done:
        return done.value


def chunks(content: bytes, progress: Progress) -> Iterator[bytes]:
    """Cut a body into pieces, telling after each how much has been handed over."""
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]
        progress(min(start + CHUNK, len(content)))


def _pages(kind: type[R], path: str, key: str) -> Flow[list[R]]:
    found: list[R] = []
    cursor: str | None = None
    while True:
        body = _json((yield Call("GET", path, {"cursor": cursor} if cursor else {})))
        found += _each(kind, body, key)
        cursor = body.get("next")
        if not cursor:
            return found


def _joined(answers: Sequence[Prediction], images: Sequence[ImageAnswer]) -> Prediction:
    timing = {key: sum(answer.timing_ms.get(key, 0.0) for answer in answers) for key in answers[0].timing_ms}
    return answers[0].model_copy(update={"predictions": tuple(images), "timing_ms": timing})


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code >= 400:
        raise error_of(response)
    return response


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = _checked(response).json()
    except ValueError as error:
        raise NotAServer(_foreign(response), status=response.status_code) from error
    if not isinstance(body, dict):
        raise NotAServer(_foreign(response), status=response.status_code)
    return body


def _parsed(kind: type[R], response: httpx.Response) -> R:
    body = _json(response)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise NotAServer(_foreign(response), status=response.status_code) from error


def _each(kind: type[R], body: Mapping[str, Any], key: str) -> list[R]:
    try:
        return [kind.model_validate(item) for item in body[key]]
    except (KeyError, TypeError, ValidationError) as error:
        raise NotAServer(f"expected a list of {key}, got something else: is this a Taskpack server?") from error


def _foreign(response: httpx.Response) -> str:
    return (
        f"{response.request.url} answered something that no Taskpack server does: is another program listening there?"
    )


def _gone(response: httpx.Response) -> bool:
    return _checked(response).status_code == NO_CONTENT


def _retire(retire: bool) -> dict[str, str]:
    return {"retire": "true"} if retire else {}


def _label_path(name: str, label: str) -> str:
    return f"/tasks/{_quoted(name)}/labels/{_quoted(label)}"


def _quoted(segment: str) -> str:
    """A name as one segment of a path.

    Raises:
        Rejected: the path would lead elsewhere. `.` and `..` are folded away before a request is sent and `/` is a
            separator to the server even where it is quoted, so that `DELETE /tasks/birds/labels/..` deletes the task.
    """
    if segment in ("", ".", "..") or "/" in segment:
        raise Rejected(f"'{segment}' is not the name of a task, version or label")
    return quote(segment, safe=":")


def _bytes(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _name(image: Image, place: int) -> str:
    return f"image-{place}" if isinstance(image, bytes) else Path(image).name
