"""The three ways of sending images to /predict, and what each image is in bytes: raw, multipart, JSON with base64."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from pydantic import ValidationError

from ..edge.multipart import parse_multipart
from ..errors import Problem
from ..schemas import ImagesIn

RAW_TYPES = ("image/jpeg", "image/png", "image/webp")
HOW = (
    "send one image with Content-Type image/jpeg, image/png or image/webp, or multipart/form-data with parts named "
    '`image`, or JSON {"images":[{"b64":…}]}'
)

MARKS_PER_IMAGE, MORE_MARKS = 4, 64
"""How many of `{`, `[` and `,` a JSON body may have: twice what is needed, so that slips are told by their place."""


@dataclass(frozen=True)
class Encoded:
    """One image as it was sent: its bytes, or why there are none."""

    data: bytes = b""
    fault: str | None = None


def media_type(content_type: str | None) -> str:
    """The media type of a Content-Type header without its parameters, in lower case."""
    return (content_type or "").partition(";")[0].strip().lower()


def check_media_type(content_type: str | None) -> None:
    """Refuse a body that could not be images, before it is read.

    Raises:
        Problem: 415.
    """
    kind = media_type(content_type)
    if kind not in (*RAW_TYPES, "multipart/form-data", "application/json"):
        raise Problem(415, f"the Content-Type {kind or '(none)'} is not one that is read here: {HOW}")


def images_of(content_type: str | None, body: bytes, most: int) -> list[Encoded]:
    """The images in a body, in their order.

    Args:
        content_type: the header; `check_media_type` has passed it.
        body: the whole body.
        most: most images.

    Raises:
        Problem: 400 for a malformed body, with every fault; 413 for more images than `most`.
    """
    if not body:
        raise Problem(400, f"the body is empty: {HOW}")
    match media_type(content_type):
        case "multipart/form-data":
            images = _of_parts(content_type or "", body, most)
        case "application/json":
            images = _of_json(body, most)
        case _:
            images = [Encoded(body)]
    if len(images) > most:
        raise Problem(413, f"{len(images)} images are more than the limit of {most}", reason="too_large")
    return images


def _of_parts(content_type: str, body: bytes, most: int) -> list[Encoded]:
    parts = parse_multipart(content_type, body, most)
    faults = [
        f"part {place}: named {part.name[:64]!r}, expected `image`"
        for place, part in enumerate(parts)
        if part.name != "image"
    ]
    if not parts:
        faults = [f"no part: expected 1 to {most} parts named `image`"]
    if faults:
        raise Problem(400, faults[0] if len(faults) == 1 else f"{len(faults)} parts are not images", faults)
    return [Encoded(part.data) for part in parts]


def _of_json(body: bytes, most: int) -> list[Encoded]:
    _count_values(body, most)
    try:
        sent = ImagesIn.model_validate_json(body)
    except ValidationError as error:
        faults = [*body_faults(error), *_base64_faults(body)]
        raise Problem(
            400, faults[0] if len(faults) == 1 else f"{len(faults)} faults in the JSON body", faults
        ) from error
    if len(sent.images) > most:
        raise Problem(413, f"{len(sent.images)} images are more than the limit of {most}", reason="too_large")
    return [_of_base64(image.b64) for image in sent.images]


def body_faults(error: ValidationError) -> list[str]:
    """Every fault of a JSON body, by its place in it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg'].removeprefix('Value error, ')}" for fault in found
    ]


def _base64_faults(body: bytes) -> list[str]:
    """The images of a refused body whose base64 is none, either; in a sound one each is answered for itself."""
    try:
        images = json.loads(body)["images"]
        texts = [image.get("b64") if isinstance(image, dict) else None for image in images]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    told = [(place, _of_base64(text).fault) for place, text in enumerate(texts) if isinstance(text, str)]
    return [f"images.{place}.{fault}" for place, fault in told if fault]


def _count_values(body: bytes, most: int) -> None:
    """Refuse JSON of far more values than images need, before any is parsed: each costs hundreds of times its bytes.

    An image is one object: one `{`, and one `,` before the next. Base64 has neither.
    """
    marks = sum(body.count(mark) for mark in (b"{", b"[", b","))
    if marks > MARKS_PER_IMAGE * most + MORE_MARKS:
        raise Problem(
            413, f"the JSON body has more values than the limit of {most} images needs: {HOW}", reason="too_large"
        )


def _of_base64(text: str) -> Encoded:
    try:
        return Encoded(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Encoded(fault="b64 is not base64 (RFC 4648, with padding, without a data: prefix or line breaks)")
