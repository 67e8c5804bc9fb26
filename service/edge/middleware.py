"""The outermost layer: every request gets a record, every answer its headers, every error the same shape.

Edge        ids, clock, problem+json, metrics, access log
└─ Gate     head limits, Host, key, role, quota, how much at once
   └─ FastAPI's router and the routes
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masks_store import StoreUnwritable

from ..errors import Problem, ProblemResponse, problem_of, retry_after
from ..runtime import Runtime
from .bodies import Disconnected
from .record import RequestRecord, begin

log = logging.getLogger("taskpack.service")
access = logging.getLogger("taskpack.access")

CLOSED_EARLY = 499
"""What the metrics and the log say of a caller who left before the answer."""


class Edge:
    """See the module.

    Args:
        app: what answers.
        runtime: of the app; tells metrics and settings.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin(scope)
        status = 0
        head = record.head
        if head:
            scope = {**scope, "method": "GET"}  # the same answer; its body is left out below

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), record)
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Disconnected:
            status = status or CLOSED_EARLY
        except asyncio.CancelledError:
            if status or self._runtime.state == "ready":
                raise
            # this request has outlasted --drain-timeout; its caller is told so before the connection goes
            problem = Problem(503, "the server is stopping", headers=retry_after(1.0), reason="draining")
            await self._refuse(problem, record, scope, receive, answer)
        except Exception as error:
            if status:
                log.exception("request %s broke after its answer had begun", record.request_id)
                raise
            await self._refuse(self._problem(error, record), record, scope, receive, answer)
        finally:
            account(self._runtime, record, "HEAD" if head else scope["method"], scope["path"], status)

    def _problem(self, error: Exception, record: RequestRecord) -> Problem:
        problem = problem_of(error, self._runtime.private)
        if problem is None or problem.status == 500 or isinstance(error, StoreUnwritable):
            log.error("request %s failed", record.request_id, exc_info=error)
        return problem or Problem(
            500, "something went wrong that nobody foresaw; the server's log has it under this request id"
        )

    async def _refuse(
        self, problem: Problem, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        _count_rejected(self._runtime, problem)
        await ProblemResponse(problem, record.request_id)(scope, receive, send)


def account(
    runtime: Runtime, record: RequestRecord, method: str, path: str, status: int, problem: Problem | None = None
) -> None:
    """Count and log a request that has ended.

    Args:
        runtime: of the app.
        record: of the request.
        method, path: of the request; `-` where it was not understood.
        status: that it was answered with.
        problem: that it was answered with, where that has not been counted yet.
    """
    if problem is not None:
        _count_rejected(runtime, problem)
    runtime.metrics.answered(record, status)
    if runtime.settings.access_log:
        access.info(
            "%s %s %s %d %.1fms request=%s trace=%s",
            record.caller,
            method,
            _printable(path),
            status,
            record.elapsed * 1e3,
            record.request_id,
            record.trace_id,
        )


def _count_rejected(runtime: Runtime, problem: Problem) -> None:
    if problem.reason:
        runtime.metrics.rejected.labels(problem.reason).inc()


def _add_headers(headers: MutableHeaders, record: RequestRecord) -> None:
    headers["X-Request-Id"] = record.request_id
    headers["traceparent"] = record.traceparent
    headers["Server-Timing"] = record.server_timing()
    headers["X-Content-Type-Options"] = "nosniff"
    if record.versions:
        headers["X-Task-Version"] = ", ".join(record.versions)


def _printable(path: str) -> str:
    """A path for one line of the log: a caller must not be able to write lines of his own into it."""
    return path.encode("unicode_escape").decode("ascii")[:512]
