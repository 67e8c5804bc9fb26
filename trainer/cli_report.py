"""`taskpack report`: a store on one page."""

from __future__ import annotations

from pathlib import Path

import click

from .cli import open_store, print_json, reporting
from .report import write_report


@click.command()
@click.argument("store")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder that is written; a report that is in it is replaced whole.  [default: STORE/report]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the page's path and verdict as one JSON object.")
def report(store: str, out: Path | None, as_json: bool) -> None:
    """Write a page on STORE: accuracy, capacity, owners, sharing, forgetting, bytes, training curves, confusion.

    The page is one HTML file that opens anywhere and loads nothing; report.json with all numbers and the figures as
    PNG stand beside it. Every version's digest is computed anew for it.
    """
    with open_store(store) as opened, reporting() as reporter:
        written = write_report(opened, out, reporter)
    if as_json:
        print_json({"page": str(written.page), "verdict": written.facts.verdict})
        return
    click.echo(written.facts.verdict)
    click.echo(f"report: {written.page}")
