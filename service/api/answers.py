"""Answers as bytes: JSON written fast, ETags compared as RFC 9110 says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

_ETAGS = re.compile(r'\s*(?:\*|(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"(?:\s*,\s*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*")*)\s*')
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class Json(Response):
    """A JSON answer, of a content or as it is written already."""

    media_type = "application/json"

    def __init__(
        self,
        content: BaseModel | Mapping[str, Any] | bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else to_json(content, exclude_none=False)
        super().__init__(body, status, {"Cache-Control": "no-store", **(headers or {})})


def etag(version: str) -> str:
    """A version as a strong ETag."""
    return f'"{version}"'


def parse_etags(header: str) -> list[str] | None:
    """The strong tags of an If-Match or If-None-Match header; `["*"]` for any; None for a malformed header.

    Weak tags are left out: they never match where a strong comparison is asked for.
    """
    if not _ETAGS.fullmatch(header):
        return None
    if header.strip() == "*":
        return ["*"]
    return [value for weak, value in _ETAG.findall(header) if not weak]


def weakly_matches(header: str, version: str) -> bool:
    """Whether an If-None-Match header of a GET names this version, or any."""
    return header.strip() == "*" or any(value == version for _, value in _ETAG.findall(header))
