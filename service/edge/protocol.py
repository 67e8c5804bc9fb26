"""uvicorn's HTTP protocol with what it lacks: a limit and a clock for heads, and problem+json for what is no HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from pydantic_core import to_json
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from ..errors import MEDIA_TYPE, Problem, problem_json
from ..runtime import Runtime
from .middleware import account
from .record import begin

PIPELINED = 32
"""Requests of one connection whose heads may wait for the answer to an earlier one."""


class TooManyWait(Exception):
    """Ends the parser's look at what was received; uvicorn takes it for wrong HTTP, which was refused already."""


def protocol_of(runtime: Runtime) -> type[BoundedProtocol]:
    """The protocol class for a server of this app."""
    return type("AppProtocol", (BoundedProtocol,), {"runtime": runtime})


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose heads and unread bodies are bounded in size and time.

    A connection whose request line and headers do not arrive within `header_timeout_s`, or are larger than
    `max_header_bytes`, is answered 408 or 431 and closed; without this either would hold memory for ever. The clock
    runs from the first byte of a head, or from the connection's begin, but not while an earlier request of the
    connection is being answered. Whatever is refused here is refused after the answers to the requests before it.

    A body that its request's answer did not wait for may take no longer than any other: `artifact_timeout_s`. What
    stands between a body's bytes and behind them (chunk extensions, trailers) is bounded as a head is, and at most
    `PIPELINED` requests wait behind the one that is being answered.

    Attributes:
        runtime: of the app; uvicorn makes the connections, so that it belongs to the class (`protocol_of`).
    """

    runtime: ClassVar[Runtime]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = self.runtime.settings
        self._head_bytes = 0
        self._beside_body = 0  # bytes since the last of a body that were none of it
        self._in_head = True
        self._in_body = False
        self._head_since = time.monotonic()
        self._body_ended = False  # by the piece that was received last: some of it is of the request before
        self._clock: asyncio.TimerHandle | None = None
        self._unanswered = 0  # requests whose head has come and whose answer has not ended
        self._refusal: Problem | None = None  # what is said after the last of these answers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in, and count those of a head, and those of a body's chunks and trailers."""
        if self._refusal is not None:
            return
        self._body_ended = False
        self._beside_body += len(data)  # `on_body` sets it back
        super().data_received(data)
        if self._in_body and self._beside_body > self._settings.max_header_bytes:
            self._too_much_beside_body()
        if self._in_head and not self._body_ended and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.max_header_bytes:
                limit = self._settings.max_header_bytes
                detail = f"request line and headers are over the limit of {limit} bytes"
                self._refuse(Problem(431, detail, reason="too_large"))

    def on_message_begin(self) -> None:
        """A head has begun."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._head_since = time.monotonic()
        self._unset_keepalive_if_required()
        if not self._unanswered:
            self._start_clock()

    def on_headers_complete(self) -> None:
        """A head has ended: its request will be answered.

        Raises:
            TooManyWait: so many wait already that this one is refused.
        """
        if len(self.pipeline) >= PIPELINED:
            detail = f"more than {PIPELINED} requests of one connection wait for the answer to an earlier one"
            self._refuse(Problem(400, detail, reason="too_large"))
            raise TooManyWait
        self._in_head, self._in_body = False, True
        self._beside_body = 0
        self._stop_clock()
        super().on_headers_complete()
        self._unanswered += 1

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body has ended."""
        self._in_body, self._body_ended = False, True
        super().on_message_complete()
        if self._clock is not None:  # its request was answered without it: the connection is idle from now on
            self._stop_clock()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer has ended: refuse what waited for that, or wait for what is left of a body or for the next head."""
        super().on_response_complete()
        self._unanswered -= 1
        if self.pipeline:
            self.flow.pause_reading()  # until those that wait are answered
        if self._unanswered or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._write(self._refusal)
        elif self._in_head or self._in_body:
            self._unset_keepalive_if_required()
            self._start_clock(self._settings.artifact_timeout_s if self._in_body else self._settings.header_timeout_s)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(Problem(400, "this is not an HTTP/1.1 request", reason="malformed"))

    def _start_clock(self, seconds: float | None = None) -> None:
        if self._clock is None:
            limit = self._settings.header_timeout_s if seconds is None else seconds
            self._clock = self.loop.call_later(limit, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if self._in_body:  # its request was answered without it
            self.transport.close()
        elif not self.transport.is_closing():
            seconds = self._settings.header_timeout_s
            detail = f"request line and headers did not arrive within {seconds:g} s"
            self._refuse(Problem(408, detail, reason="slow_head"))

    def _too_much_beside_body(self) -> None:
        if not self._unanswered:  # its request was answered without it
            self.transport.close()
        elif not self.transport.is_closing():
            limit = self._settings.max_header_bytes
            detail = f"chunk extensions and trailers are over the limit of {limit} bytes"
            self._refuse(Problem(431, detail, reason="too_large"))

    def _unset_keepalive_if_required(self) -> None:
        """Uvicorn calls this for all bytes that come; a blank line between requests must not keep a connection."""
        if self._unanswered or self._in_head or self._in_body or self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def _refuse(self, problem: Problem) -> None:
        self._stop_clock()
        if self._refusal is not None:
            return
        self._refusal = problem
        if self._drop_broken():
            self._write(problem)

    def _drop_broken(self) -> bool:
        """Give up the newest request if its body can never be whole; whether no other waits for its answer."""
        cycle = self.cycle
        if not self._unanswered or not cycle.more_body:
            return not self._unanswered
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            self._unanswered -= 1
            return False  # another runs, or this one would not have had to wait
        if cycle.response_started:
            self.transport.close()
            return False
        return True

    def _write(self, problem: Problem) -> None:
        record = begin({"type": "http", "headers": []})
        record.started = self._head_since
        body = to_json(problem_json(problem, record.request_id))
        head = (
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nx-request-id: {record.request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[problem.status] + head.encode("ascii") + body)
        self.transport.close()
        account(self.runtime, record, "-", "-", problem.status, problem)
