"""`taskpack report`: a store on one page that opens anywhere, with its figures and the numbers behind them.

`facts` reads the store and `history` its runs; `figures` and `page` only show what the facts say.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from masks_store import InvalidInput, Store, write_folder

from ..progress import Reporter, Silent
from .facts import KIND, Facts, gather

PAGE, DATA, FOLDER = "index.html", "report.json", "report"


@dataclass(frozen=True)
class StoreReport:
    """A report on the disk.

    Attributes:
        page: the HTML file; its folder has report.json and figures/ too.
        facts: what it says.
    """

    page: Path
    facts: Facts


def write_report(
    store: Store, out: str | os.PathLike[str] | None = None, reporter: Reporter | None = None
) -> StoreReport:
    """Write a store's report: `index.html`, `report.json`, `figures/*.png`; an old report there is replaced whole.

    Args:
        store: what it is on.
        out: the folder; None: `report` in the store's own.
        reporter: shows what happens; by default nothing is shown.

    Raises:
        InvalidInput: the folder holds something that is no report, or cannot be written.
        StoreCorrupt: a file of the store is damaged.
    """
    from .figures import draw_all  # matplotlib takes a second to import: only who draws pays for it
    from .page import render

    folder = Path(out) if out is not None else store.path / FOLDER
    reporter = reporter or Silent()
    _check_replaceable(folder)
    reporter.say(f"reading the store's versions ({len(store.versions()):,}), each digest computed anew")
    facts = gather(store)
    reporter.say("drawing the figures")
    pictures = draw_all(facts)
    content = {
        PAGE: render(facts, pictures).encode(),
        DATA: (json.dumps(facts.as_json(), ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode(),
    }
    for picture in pictures.values():
        content |= {f"figures/{picture.name}-{theme}.png": png for theme, png in picture.png.items()}
    write_folder(folder, content)
    return StoreReport(folder / PAGE, facts)


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder of something else: all that is in it would go."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        kind = json.loads((folder / DATA).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != KIND:
        raise InvalidInput(
            f"{folder} holds something that is not a report, and would be replaced whole; name a folder that does not "
            "exist, or is empty, or holds a report"
        )
