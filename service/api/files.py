"""A file as an answer, piece by piece: however large it is, a piece of it is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import BinaryIO

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 1 << 20


class FileBody(Response):
    """The bytes of an open file, which is closed at the end.

    Args:
        file: at its start, already verified.
        size: bytes in it.
        media_type: of them.
        headers: further ones.
    """

    def __init__(self, file: BinaryIO, size: int, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(None, media_type=media_type, headers={**headers, "Content-Length": str(size)})
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; nothing more is read once the caller has gone away."""
        left = asyncio.ensure_future(_disconnected(receive))
        try:
            with self._file as file:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while not left.done() and (piece := await asyncio.to_thread(file.read, PIECE)):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            left.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
