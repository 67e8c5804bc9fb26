"""What a report's page says, as a browser would find it."""

from __future__ import annotations

from html.parser import HTMLParser

from trainer.report.facts import Facts
from trainer.report.page import render


class Page(HTMLParser):
    """What a browser would find in a page: tags with their attributes, text, tables' rows, and what does not close."""

    VOID = ("meta", "img", "source", "br", "link")
    CELLS = ("th", "td")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in self.CELLS:
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if any(tag in self.CELLS for tag in self.open):
            self.rows[-1][-1] += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def text_of(facts: Facts) -> str:
    """What the page says, without drawing its figures; one space between any two words."""
    return " ".join(Page(render(facts, {})).text.split())
