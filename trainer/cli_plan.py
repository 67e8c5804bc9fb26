"""`taskpack plan`: in which order to pack tasks, and what each would get."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from masks_store import Store

from .order import Proposal, propose
from .progress import reporter_for
from .prune import DEFAULT_PRUNE
from .sources import printable


@click.command()
@click.argument("store")
@click.argument("more", nargs=-1, metavar="[SOURCE]...")
@click.option("--data", "sources", multiple=True, required=True, metavar="SOURCE", help="A task's pictures; see train.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 64), help="That prepare pictures.  [default: as torch has it]")
@click.option("--seed", default=0, show_default=True, help="Draws the splits that a source does not have.")
@click.option("--skip-broken", is_flag=True, help="Leave out broken pictures and copies over splits.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def plan(
    store: str,
    more: tuple[str, ...],
    sources: tuple[str, ...],
    device: str,
    threads: int | None,
    seed: int,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Propose the order in which to pack tasks into STORE with packnet: hardest first.

    Each SOURCE after --data is one task. A linear probe on the backbone's frozen features tells how hard it is (its
    validation accuracy), and a nearest class mean beside it. The table also says how many free weights each task would
    keep: under --prune equal:T for all of them, and under --prune 0.75 for each. Nothing is trained into the store.
    """
    reporter = reporter_for(sys.stderr)
    try:
        with Store.open(Path(store)) as opened:
            proposal = propose(
                opened,
                (*sources, *more),
                seed=seed,
                skip_broken=skip_broken,
                device=device,
                threads=threads,
                reporter=reporter,
            )
    finally:
        reporter.close()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(proposal), ensure_ascii=True, sort_keys=True))
    else:
        _show(proposal)


def _show(proposal: Proposal) -> None:
    """Print a proposal for people."""
    table = Table()
    table.add_column("hardest first", overflow="fold")
    for name in ("classes", "train", "linear", "mean", f"equal:{proposal.tasks}", f"{DEFAULT_PRUNE:g}"):
        table.add_column(name, justify="right")
    for place in proposal.places:
        one = place.candidate
        table.add_row(
            Text(printable(one.source)),
            f"{one.classes:,}",
            f"{one.images['train']:,}",
            f"{100 * one.linear_top1:.1f} %",
            f"{100 * one.nearest_mean_top1:.1f} %",
            _share(place.equal, proposal.total),
            _share(place.fixed, proposal.total),
        )
    Console(highlight=False).print(table)
    if proposal.free:
        free = _share(proposal.free, proposal.total)
        click.echo(f"the last two columns: what each keeps of all shared weights; {free} of them are free")
    else:
        click.echo("this store has no free weights: packnet finds none; the other methods need no order")


def _share(weights: int, total: int) -> str:
    return f"{100 * weights / total:.1f} %"
