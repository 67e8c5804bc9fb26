"""multipart/form-data that is already in memory, cut into its parts: names and bytes, nothing spooled to disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import Problem


@dataclass
class Part:
    """One part: the `name` of its Content-Disposition, and its bytes."""

    name: str = ""
    data: bytes = b""


@dataclass
class _Reading:
    """Where the parser is: it reports offsets into the body, and pieces of what it had to look at twice."""

    most: int
    beyond: Problem
    parts: list[Part] = field(default_factory=list[Part])
    pieces: list[bytes] = field(default_factory=list[bytes])
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def part_begin(self) -> None:
        if len(self.parts) >= self.most:
            raise self.beyond
        self.parts.append(Part())
        self.pieces.clear()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.pieces.append(data[start:end])

    def part_end(self) -> None:
        self.parts[-1].data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()

    def header_begin(self) -> None:
        self.header.clear()
        self.value.clear()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        if bytes(self.header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self.value))
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")

    def end(self) -> None:
        self.ended = True


def parse_multipart(content_type: str, body: bytes, most: int, beyond: Problem | None = None) -> list[Part]:
    """Cut a body into its parts.

    Args:
        content_type: the header, with the boundary.
        body: the whole body.
        most: most parts.
        beyond: what more parts are answered with; by default 413.

    Raises:
        Problem: 400 for no boundary or a broken body, `beyond` for too many parts.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "the Content-Type multipart/form-data lacks its boundary")
    too_many = Problem(413, f"more parts than the limit of {most}", reason="too_large")
    reading = _Reading(most, beyond or too_many)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reading.part_begin,
                "on_part_data": reading.part_data,
                "on_part_end": reading.part_end,
                "on_header_begin": reading.header_begin,
                "on_header_field": reading.header_field,
                "on_header_value": reading.header_value,
                "on_header_end": reading.header_end,
                "on_end": reading.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the multipart body is broken: {str(error)[:200]}") from error
    if not reading.ended:
        raise Problem(400, "the multipart body ends before its last boundary")
    return reading.parts
