"""Making a store whole or not at all, and reading what `store.json` says of it."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from .backbones import Backbone, BackboneFile, read_backbone
from .blobs import Blobs
from .container import digest_of
from .errors import InvalidInput, NotFound, StoreCorrupt
from .files import Files, clean_temp, disk_errors, temp_name, write_whole
from .process import origin
from .registry import Registry

FORMAT = 1
CAPACITIES = ("weights", "units")
"""What tasks take of a store: single weights (packnet), or whole neurons and filters (clnp)."""
_SETTINGS = "store.json"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_FIXED = (errno.EBUSY, errno.EXDEV)


@dataclass(frozen=True)
class Settings:
    """What `store.json` holds."""

    format: int
    backbone: str
    capacity: str


def create_store(path: Path, backbone: BackboneFile, capacity: str, files: Files) -> None:
    """See `Store.create`. Everything is written into a directory beside `path`, which gets its name at the end."""
    _check_source(backbone)
    check_capacity_fits(read_backbone(backbone.data), capacity)
    path = path.resolve()
    fault = vacancy_fault(path)
    if fault:
        raise InvalidInput(fault)
    prefix = f".{path.name}.new-"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_temp(files, path.parent, prefix)
        unfinished = path.parent / f"{prefix}{temp_name()}"
        try:
            _fill(unfinished, backbone, capacity, files)
            _name(unfinished, path, files)
        except BaseException:
            with suppress(OSError):
                files.remove(unfinished)
            raise


def vacancy_fault(path: Path) -> str | None:
    """Why no store can be made at `path`; None where nothing stands in its way."""
    if (path / _SETTINGS).exists():
        return f"{path} is a store already; name another path, or remove it first"
    if path.is_dir() and any(path.iterdir()):
        return f"{path} is not empty; name a path that does not exist, or an empty directory"
    if path.exists() and not path.is_dir():
        return f"{path} is a file; name a path that does not exist, or an empty directory"
    above = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        return f"{path} cannot be made: {above} is a file, not a directory; name another path"
    return None


def check_capacity_fits(backbone: Backbone, capacity: str) -> None:
    """Check that tasks can take this of a backbone.

    Raises:
        InvalidInput: neither `weights` nor `units`; or units of a backbone that keeps weights of its own, or whose
            units CLNP's rules do not cover.
    """
    if capacity not in CAPACITIES:
        raise InvalidInput(f"capacity {capacity!r} is not one of {', '.join(CAPACITIES)}")
    if capacity == "units":
        if backbone.manifest.keep != 0.0:
            raise InvalidInput(
                f"capacity units needs a backbone that keeps nothing (--keep 0), this one keeps "
                f"{backbone.manifest.keep:g}: a weight of its own would feed units that no task owns"
            )
        _ = backbone.units


def read_settings(path: Path) -> Settings:
    """What `store.json` says.

    Raises:
        NotFound: there is no store at `path`.
        InvalidInput: it was made by a newer taskpack.
        StoreCorrupt: the file is damaged.
    """
    file = path / _SETTINGS
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = "there is nothing there" if not path.exists() else f"it has no {_SETTINGS}"
        raise NotFound(
            f"{path} is not a store: {what}; make one with `taskpack init {path} --backbone resnet18`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"{file} cannot be read ({error}); check its permissions or restore it") from error
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{file} is not JSON ({error}); restore it from a backup") from error
    return _settings(fields, file)


def _settings(fields: Any, file: Path) -> Settings:
    version = cast(dict[str, Any], fields).get("format") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise InvalidInput(f"{file} has store format {version}, this taskpack reads {FORMAT}; update taskpack")
    try:
        settings = Settings(**fields)
    except TypeError as error:
        raise StoreCorrupt(f"{file} does not hold a store's settings ({error}); restore it from a backup") from error
    if version != FORMAT or settings.capacity not in CAPACITIES:
        raise StoreCorrupt(f"{file}: format {version!r}, capacity {settings.capacity!r}; restore it from a backup")
    return settings


def _check_source(backbone: BackboneFile) -> None:
    wanted = read_backbone(backbone.data).manifest.source
    given = digest_of(backbone.source) if backbone.source is not None else None
    if wanted != given:
        raise InvalidInput(
            f"the backbone was pruned from dense weights {wanted}, those given with it are {given}; "
            "pass a BackboneFile as `create` or `encode_backbone` made it"
        )


def _fill(path: Path, backbone: BackboneFile, capacity: str, files: Files) -> None:
    files.make_dir(path)
    blobs = Blobs(path / "blobs", files)
    blobs.create()
    digest = blobs.put(backbone.data)
    if backbone.source is not None:
        blobs.put(backbone.source)
    files.make_dir(path / "runs")
    registry = Registry(path / "registry.sqlite3")
    registry.create()
    with registry.write() as transaction:
        transaction.log("cli", "create", None, None, origin() | {"backbone": digest})
    registry.close()
    settings = json.dumps(asdict(Settings(FORMAT, digest, capacity)), indent=1) + "\n"
    write_whole(files, path / _SETTINGS, settings.encode())


def _name(unfinished: Path, path: Path, files: Files) -> None:
    try:
        files.rename(unfinished, path)
    except OSError as error:
        if error.errno in _TAKEN:
            raise InvalidInput(f"{path} was made by another process meanwhile; name another path") from error
        if error.errno in _FIXED:
            raise InvalidInput(f"{path} is a mount point and must stay; name a directory in it") from error
        raise
    files.fsync_dir(path.parent)
