"""Reading bodies: piece by piece, up to a limit, within a time, and only so many bytes of all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from ..errors import Problem, retry_after

SMALL = 64 << 10
"""Bytes that a JSON body other than a prediction's may have."""


class Disconnected(Exception):
    """The caller went away: nobody is left to answer."""


class Bodies:
    """All request bodies in memory at this moment, bounded together. Lives on the event loop: no locks.

    Args:
        total: bytes that all bodies together may take.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0

    @property
    def taken(self) -> int:
        """Bytes held now."""
        return self._taken

    @asynccontextmanager
    async def read(self, request: Request, limit: int, timeout: float, what: str = "body") -> AsyncGenerator[bytes]:
        """The body of a request, as long as the block runs.

        Args:
            request: nothing of its body was read yet.
            limit: most bytes; a larger Content-Length is refused before anything is read.
            timeout: seconds for the whole body.
            what: how messages call it.

        Raises:
            Problem: 400 for a wrong Content-Length, 408, 413, 415 for a compressed body, or 503 where other requests
                take the memory.
            Disconnected: the caller went away.
        """
        _check_coding(request.headers)
        _check_length(request.headers.get("content-length"), limit, what)
        held = 0
        pieces: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(timeout):
                    async for piece in request.stream():
                        held += len(piece)
                        self._taken += len(piece)
                        if piece:  # the last is empty: with it even a body in one piece would be joined, and so copied
                            pieces.append(piece)
                        if held > limit:
                            raise _too_large(what, limit)
                        if self._taken > self._total:
                            raise Problem(
                                503,
                                "the server holds as many bytes of requests as it may; try again",
                                headers=retry_after(1.0),
                                reason="inflight_bytes",
                                close=True,
                            )
            except TimeoutError:
                raise Problem(
                    408, f"the {what} did not arrive within {timeout:g} s", reason="slow_body", close=True
                ) from None
            except ClientDisconnect as error:
                raise Disconnected from error
            body = b"".join(pieces) if len(pieces) != 1 else pieces[0]
            pieces.clear()
            yield body
        finally:
            self._taken -= held


def _check_coding(headers: Headers) -> None:
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise Problem(415, "compressed bodies are not read here: send it without Content-Encoding")
    codings = ",".join(headers.getlist("transfer-encoding")).lower()
    if any(coding.strip() not in ("", "chunked") for coding in codings.split(",")):
        raise Problem(415, "compressed bodies are not read here: the one Transfer-Encoding is chunked", close=True)


def _check_length(header: str | None, limit: int, what: str) -> None:
    if header is None:
        return
    if not header.isascii() or not header.isdigit():
        raise Problem(400, "the Content-Length header must be a whole number", close=True)
    if int(header) > limit:
        raise _too_large(what, limit)


def _too_large(what: str, limit: int) -> Problem:
    return Problem(413, f"the {what} is over the limit of {limit} bytes", reason="too_large", close=True)
