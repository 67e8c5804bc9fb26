"""Where pictures come from: one file per kind of source, each a function from its name to a `Listing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from masks_store import InvalidInput

from .digits import open_digits
from .faults import Finding, printable
from .folder import open_folder
from .layout import nearest
from .listing import MAX_FILE_BYTES, SPLITS, Content, Entry, Listing, Pixels
from .npz import open_npz
from .torchvision import open_torchvision
from .zip import open_zip

__all__ = [
    "MAX_FILE_BYTES",
    "SPLITS",
    "Content",
    "Entry",
    "Finding",
    "Listing",
    "Pixels",
    "nearest",
    "open_source",
    "printable",
    "source_fault",
]

BY_SCHEME: dict[str, Callable[[str], Listing]] = {"torchvision": open_torchvision, "sklearn": open_digits}
BY_SUFFIX: dict[str, Callable[[str], Listing]] = {".zip": open_zip, ".npz": open_npz}
KNOWN = "a folder, a .zip, an .npz, torchvision:<Dataset>[:root] or sklearn:digits|parity|orientation"


def open_source(source: str) -> Listing:
    """Open a source by what its name looks like: a scheme, a folder, or a file's ending.

    A file whose content cannot be read is a listing with that fault and no pictures.

    Raises:
        InvalidInput: there is no such source.
    """
    fault = source_fault(source)
    if fault:
        raise InvalidInput(fault)
    if _has_scheme(source):
        scheme, _, rest = source.partition(":")
        return BY_SCHEME[scheme](rest)
    path = Path(source)
    reader = open_folder if path.is_dir() else BY_SUFFIX[path.suffix.lower()]
    try:
        return reader(source)
    except InvalidInput as error:
        return _unreadable(str(error))
    except OSError as error:
        return _unreadable(f"{source}: {error.strerror or error}")


def source_fault(source: str) -> str | None:
    """Why there is no source of that name, as far as that is seen without opening it."""
    if not source:
        return f"the source's name is empty; a source is {KNOWN}"
    path = Path(source)
    if _has_scheme(source) or path.is_dir():
        return None
    if not path.exists():
        return f"there is no source {source!r}; a source is {KNOWN}"
    if path.suffix.lower() not in BY_SUFFIX:
        return f"{source} is no source: expected {KNOWN}"
    return None


def _has_scheme(source: str) -> bool:
    scheme, colon, _ = source.partition(":")
    return bool(colon) and scheme in BY_SCHEME


def _unreadable(reason: str) -> Listing:
    def nothing(index: int) -> Content:
        raise IndexError(index)

    return Listing((), nothing, faults=[Finding("unreadable", "source that cannot be read", [reason], "")])
