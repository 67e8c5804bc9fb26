"""Errors as answers: what each domain error means in HTTP, and the problem+json (RFC 9457) that says so.

Domain errors know nothing of HTTP; `STATUS` is the one place that maps them. What a client reads never holds a path,
a stack or a module's name: those go to the log, under the same request id.
"""

from __future__ import annotations

import asyncio
import errno
import http
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from masks_store import (
    Conflict,
    FormatError,
    InvalidInput,
    NotFound,
    OutOfCapacity,
    PreconditionFailed,
    ProbeFailed,
    RegistryLocked,
    StoreCorrupt,
    StoreReplaced,
    StoreUnwritable,
    TaskpackError,
)

from .engine.errors import DeadlinePassed, Draining, QueueFull, VersionFailed

MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[Exception], int] = {
    InvalidInput: 400,
    NotFound: 404,
    Conflict: 409,
    PreconditionFailed: 412,
    FormatError: 422,
    ProbeFailed: 422,
    StoreCorrupt: 500,
    RegistryLocked: 503,
    StoreReplaced: 503,
    StoreUnwritable: 503,
    QueueFull: 503,
    Draining: 503,
    VersionFailed: 503,
    DeadlinePassed: 504,
    OutOfCapacity: 507,
}
"""Status of every domain error; a subclass without a row of its own has its base's."""

REASONS: dict[type[Exception], str] = {
    QueueFull: "queue_full",
    Draining: "draining",
    VersionFailed: "version_failed",
    DeadlinePassed: "deadline",
}
"""`reason` label of `taskpack_rejected_total` for errors that turn work away."""

MOST_FAULTS = 100
LINGER_S = 2.0
LINGER_BYTES = 64 << 20


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: the HTTP status.
        detail: what was expected, what came and what to do.
        faults: every fault, of more than a hundred the first and how many more; `detail` itself when there is only one.
        headers: further headers of the answer.
        reason: label of `taskpack_rejected_total`, for work that was turned away.
        close: end the connection after the answer, because the rest of the body is not wanted.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        faults: Sequence[str] = (),
        *,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults: tuple[str, ...] = _bounded(faults) or (detail,)
        self.headers = dict(headers or {})
        self.reason = reason
        self.close = close


def _bounded(faults: Sequence[str]) -> tuple[str, ...]:
    """A few bytes of a request may hold thousands of faults: nobody reads an answer of megabytes."""
    more = len(faults) - MOST_FAULTS
    return (*faults[:MOST_FAULTS], f"and {more} more") if more > 0 else tuple(faults)


def retry_after(seconds: float) -> dict[str, str]:
    """The Retry-After header: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def problem_of(error: Exception, private: Sequence[str] = ()) -> Problem | None:
    """The answer that an exception stands for; None for one that nobody foresaw.

    Args:
        error: what was raised.
        private: absolute paths that no client may read: the store's.
    """
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException():
            return Problem(error.status_code, str(error.detail), headers=error.headers)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Problem(507, "the disk is full; nothing was changed")
        case _:
            return _of_domain(error, private)


_UNWRITABLE = (
    "the store cannot be written: no permission, a read-only file system or a failing disk; the server's log names it "
    "under this request id"
)


def _of_domain(error: Exception, private: Sequence[str]) -> Problem | None:
    kind = next((base for base in type(error).__mro__ if base in STATUS), None)
    if kind is None:
        return None
    status = STATUS[kind]
    reason = REASONS.get(kind)
    if status == 500:
        return Problem(500, "the store is damaged; the server's log names the fault under this request id")
    headers = retry_after(getattr(error, "retry_after_s", 1.0)) if status == 503 else {}
    if kind is StoreUnwritable:
        return Problem(503, _UNWRITABLE, headers=headers)
    faults = error.faults if isinstance(error, TaskpackError) else ()
    return Problem(
        status,
        _clean(str(error), private),
        [_clean(fault, private) for fault in faults],
        headers=headers,
        reason=reason,
    )


def _of_validation(error: RequestValidationError) -> Problem:
    faults = [f"{_place(fault['loc'])}: {str(fault['msg']).removeprefix('Value error, ')}" for fault in error.errors()]
    return Problem(400, faults[0] if len(faults) == 1 else f"{len(faults)} faults in the request", faults)


def _place(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location[1:]) or str(location[0])


_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|var|usr|opt|srv|mnt|etc|data|work|proc|dev)/[^\s'\",;)]*")


_PATH_END = r"/|[.:]?(?:[\s'\",;)\]]|$)"
"""What may stand after a path that has ended: not more of the same name."""


def _clean(text: str, private: Sequence[str]) -> str:
    for path in private:
        text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?={_PATH_END})", "the store", text)
    return _ABSOLUTE_PATH.sub("(a file)", text)


def problem_json(problem: Problem, request_id: str) -> dict[str, Any]:
    """The members of the problem: RFC 9457's, then `request_id`, `errors`, and `error` for V2 clients."""
    return {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.detail,
        "errors": list(problem.faults),
        "request_id": request_id,
    }


class ProblemResponse(Response):
    """A problem as an ASGI response.

    Where the request's body is not wanted any more the connection is closed, but only after what the client is still
    sending was read for a moment: closing at once would reset the connection before the client has read the answer.
    """

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, request_id: str) -> None:
        body = json.dumps(problem_json(problem, request_id), ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Cache-Control": "no-store", **problem.headers}
        if problem.close:
            headers["Connection"] = "close"
        super().__init__(body, problem.status, headers)
        self._lingers = problem.close and problem.status != 408

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if not self._lingers:
            await super().__call__(scope, receive, send)
            return
        start: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    taken = 0
    try:
        async with asyncio.timeout(LINGER_S):
            while taken < LINGER_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
