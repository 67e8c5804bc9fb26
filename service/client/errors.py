"""What a call to a server can fail with.

ClientError                  status, detail, errors, request_id, retry_after
├── Unreachable              no answer: nothing listens there, or the connection broke
├── TimedOut                 no answer in time; 504: the deadline passed in the server's queue
├── NotAServer               an answer that no Taskpack server gives
├── Unauthorized             401, 403: no key, or not a key for this
├── NotFound                 404
├── Conflict                 409: another backbone, missing parent, overlapping claim, labelled, built on
├── PreconditionFailed       412: the label is not where the caller believed
├── Rejected                 any other 4xx: the request, image or artifact is wrong; `errors` lists every fault
├── Busy                     429, 503: full, draining or loading; `retry_after` says when to ask again
└── ServerError              any other 5xx
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

from service.client.keys import NO_KEY, Key

SENT_KEY = "taskpack.key"
"""Where a response's extensions hold the `Key` that went with its request, None where none did."""


class ClientError(Exception):
    """Base of all errors here.

    Args:
        detail: what went wrong, for a person.
        status: the HTTP status; None when there was no answer.
        errors: every fault the server found.
        request_id: the server's name for the request, to find it in its logs.
        retry_after: seconds after which to ask again, where the server said so.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[str] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.errors: tuple[str, ...] = tuple(errors) or (detail,)
        self.request_id = request_id
        self.retry_after = retry_after


class Unreachable(ClientError):
    """No answer: nothing listens there, or the connection broke."""


class TimedOut(ClientError):
    """No answer in time."""


class NotAServer(ClientError):
    """An answer that no Taskpack server gives: another program listens there."""


class Unauthorized(ClientError):
    """No key was sent, or the key is not for this."""


class NotFound(ClientError):
    """No such task, version or label."""


class Conflict(ClientError):
    """The request is sound but the store's present state forbids it."""


class PreconditionFailed(ClientError):
    """The label is not where the caller believed it to be."""


class Rejected(ClientError):
    """The request, an image or the artifact is wrong; `errors` lists every fault."""


class Busy(ClientError):
    """The server is full, draining or loading; `retry_after` says when to ask again."""


class ServerError(ClientError):
    """The server failed."""


BY_STATUS: Mapping[int, type[ClientError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    429: Busy,
    503: Busy,
    504: TimedOut,
}


def error_of(response: httpx.Response) -> ClientError:
    """Turn an answer of status 400 or more into the error that names it, with or without a problem document."""
    problem = _problem(response)
    detail = str(
        problem.get("detail") or problem.get("title") or f"HTTP {response.status_code} {response.reason_phrase}"
    )
    if response.status_code in (401, 403) and SENT_KEY in response.extensions:
        detail = f"{detail}; {_about_key(response.extensions[SENT_KEY], response.status_code)}"
    faults = problem.get("errors")
    general = Rejected if response.status_code < 500 else ServerError
    return BY_STATUS.get(response.status_code, general)(
        detail,
        status=response.status_code,
        errors=[str(fault) for fault in faults] if isinstance(faults, list) else (),
        request_id=response.headers.get("X-Request-Id"),
        retry_after=_seconds(response.headers.get("Retry-After")),
    )


def _about_key(key: Key | None, status: int) -> str:
    """Where the key that was refused came from, and what to do."""
    if key is None:
        return NO_KEY
    came = f"the key that was sent came from {key.source}"
    return f"{came}: {key.mend}" if status == 401 else came


def _problem(response: httpx.Response) -> dict[str, object]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:  # a date: RFC 9110 allows it, our server never sends one
        return None
