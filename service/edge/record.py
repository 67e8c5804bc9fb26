"""What is known of one request while it is answered: its ids, its clock, what it asked for, how long each stage took.

Request ids follow the caller's `X-Request-Id` where that is sane; traces follow W3C Trace Context: the caller's trace
id is kept and this server's span is a new one under it.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

SCOPE_KEY = "taskpack.record"

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@=+/-]{0,127}")
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass
class RequestRecord:
    """One request.

    Attributes:
        request_id: the caller's, or ours.
        trace_id, span_id, flags: of the answer's `traceparent`.
        started: `time.monotonic()` when the request's head had arrived.
        caller: name of the key it came with, `anonymous` without one.
        tasks: registered tasks that it named, for the metrics' label.
        versions: the versions that answered it, for `X-Task-Version`.
        stages: seconds by stage, for `Server-Timing` and the metrics.
        head: whether only the answer's head is asked for (HEAD).
    """

    request_id: str
    trace_id: str
    span_id: str
    flags: str
    started: float = field(default_factory=time.monotonic)
    caller: str = "anonymous"
    tasks: list[str] = field(default_factory=list[str])
    versions: list[str] = field(default_factory=list[str])
    stages: dict[str, float] = field(default_factory=dict[str, float])
    head: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the request's head had arrived."""
        return time.monotonic() - self.started

    @property
    def traceparent(self) -> str:
        """The W3C header of this server's span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def took(self, stage: str, seconds: float) -> None:
        """Note the time of a stage; a second note of the same stage adds to the first."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def server_timing(self) -> str:
        """The Server-Timing header, in milliseconds."""
        stages = {**self.stages, "total": self.elapsed}
        return ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages.items())


def begin(scope: Scope) -> RequestRecord:
    """Open the record of the request that `scope` describes."""
    headers = Headers(scope=scope)
    trace_id, flags = _trace(headers.getlist("traceparent"))
    record = RequestRecord(
        request_id=_request_id(headers.get("x-request-id")),
        trace_id=trace_id,
        span_id=secrets.token_hex(8),
        flags=flags,
        head=scope.get("method") == "HEAD",  # of a head that was not understood nothing is known
    )
    scope[SCOPE_KEY] = record
    return record


def record_of(request: Request) -> RequestRecord:
    """The record of the request that is being answered."""
    record = request.scope[SCOPE_KEY]
    assert isinstance(record, RequestRecord)
    return record


def _request_id(given: str | None) -> str:
    return given if given and _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def _trace(given: list[str]) -> tuple[str, str]:
    match = _TRACEPARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if match is None or (match[1] == "00" and match[5]):  # version 00 has nothing after the flags
        return secrets.token_hex(16), "00"
    return match[2], "01" if int(match[4], 16) & 1 else "00"
