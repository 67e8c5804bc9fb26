"""A `.npz` of arrays: `train_images` u8, `train_labels` i64, the same for `val` and `test`, and `class_names`.

`images` and `labels` without a prefix are a source without splits. A set may hold JPEG bytes instead of pixels:
`jpeg_header` and per split `<split>_scans` u8 and `<split>_offsets` i64 [N + 1]; picture i is the header followed by
scans[offsets[i]:offsets[i + 1]]. Object arrays (pickles) are never read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masks_store import InvalidInput

from .faults import Finding, class_name, printable
from .listing import SPLITS, Content, Entry, Listing, Pixels

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array | None]
"""Those of a file by name; None where Python objects are inside, which are never read."""
PREFIXES = {"": None, "train_": "train", "val_": "val", "test_": "test"}
KEYS = frozenset(
    ["class_names", "jpeg_header"]
    + [f"{prefix}{part}" for prefix in PREFIXES for part in ("images", "labels", "scans", "offsets")]
)
MEND = "Expected train_images u8 [N,H,W] or [N,H,W,C], train_labels i64 [N], optionally val_*, test_*, class_names"


def open_npz(source: str) -> Listing:
    """Read the arrays into memory and list their pictures.

    Raises:
        InvalidInput: no `.npz`, arrays that are missing or of a wrong type or shape, or more than memory holds.
    """
    faults: list[str] = []
    arrays, unknown = _load(source, faults)
    parts = {
        prefix: _read_split(prefix, arrays, faults)
        for prefix in PREFIXES
        if any(f"{prefix}{part}" in arrays for part in ("images", "labels", "scans", "offsets"))
    }
    if not parts and not faults:
        faults.append("there is no train_images")
    if "" in parts and len(parts) > 1:
        faults.append("'images' stands beside arrays with a split in their name")
    if parts and "" not in parts and "train_" not in parts:
        faults.append("there is no train_images")
    sound = {prefix: part for prefix, part in parts.items() if part is not None}
    names = _class_names(arrays, sound, faults)
    if not faults and not any(len(part.labels) for part in sound.values()):
        faults.append("there is no picture in it")
    if faults:
        raise InvalidInput(f"{source} cannot be read as pictures: {'; '.join(faults)}. {MEND}", faults)
    return _listing(sound, names, sorted(unknown))


@dataclass(frozen=True)
class _Part:
    """One split: labels i64 [N], what reads picture i, and its pixels u8 [N, H, W, C] where it holds no files."""

    labels: npt.NDArray[np.int64]
    picture: Callable[[int], Content]
    pixels: Pixels | None


def _load(source: str, faults: list[str]) -> tuple[Arrays, list[str]]:
    """The known arrays, headers checked before memory is taken, and the names of what else is there."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            known = {name: _declared(archive, info) for name, info in members.items() if name in KEYS}
        objects = [name for name, size in known.items() if size < 0]
        faults += [f"{name} holds Python objects, which are never read" for name in objects]
        _refuse_excess(source, sum(size for size in known.values() if size > 0))
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: None if name in objects else file[name] for name in known}
        return arrays, [name for name in members if name not in known]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(f"{source} is no readable .npz ({error}); write it with numpy.savez_compressed") from error


def _refuse_excess(source: str, declared: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if declared > memory:
        raise InvalidInput(
            f"{source} declares {declared:,} bytes of arrays and this machine has {memory:,}; give a folder or a zip "
            "of image files"
        )


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that an array's header announces; -1 for an array of Python objects."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    if dtype.hasobject:
        return -1
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _read_split(prefix: str, arrays: Arrays, faults: list[str]) -> _Part | None:
    labels = arrays.get(f"{prefix}labels")
    before = len(faults)
    if labels is None:
        faults += _absent(arrays, f"{prefix}labels")
    elif labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        faults.append(f"{prefix}labels is {labels.dtype} {list(labels.shape)}, expected integers [N]")
    elif labels.size and int(labels.min()) < 0:
        faults.append(f"{prefix}labels has negative labels")
    encoded = f"{prefix}scans" in arrays and f"{prefix}images" not in arrays
    count, picture = (_jpegs if encoded else _pixels)(prefix, arrays, faults)
    if labels is None or picture is _nothing or len(faults) > before:
        return None
    if len(labels) != count:
        faults.append(f"{prefix}labels has {len(labels):,} labels for {count:,} pictures")
        return None
    images = None if encoded else arrays.get(f"{prefix}images")
    pixels = images[..., None] if images is not None and images.ndim == 3 else images
    return _Part(labels.astype(np.int64), picture, pixels)


def _pixels(prefix: str, arrays: Arrays, faults: list[str]) -> tuple[int, Callable[[int], Content]]:
    images = arrays.get(f"{prefix}images")
    if images is None:
        faults += _absent(arrays, f"{prefix}images")
        return 0, _nothing
    shape = list(images.shape)
    if images.dtype != np.uint8:
        faults.append(f"{prefix}images is {images.dtype}, expected uint8 (values 0 to 255)")
    elif images.ndim not in (3, 4) or (images.ndim == 4 and shape[3] not in (1, 3, 4)):
        turned = images.ndim == 4 and shape[1] in (1, 3)
        hint = ": transpose it from [N,C,H,W] to [N,H,W,C]" if turned else ", expected [N,H,W] or [N,H,W,C]"
        faults.append(f"{prefix}images is {shape}{hint}")
    elif 0 in shape[1:]:
        faults.append(f"{prefix}images is {shape}: pictures without pixels")
    pictures: Pixels = images
    return len(images) if images.ndim else 0, lambda index: pictures[index]


def _jpegs(prefix: str, arrays: Arrays, faults: list[str]) -> tuple[int, Callable[[int], Content]]:
    needed = ("jpeg_header", f"{prefix}scans", f"{prefix}offsets")
    header, scans, offsets = (arrays.get(name) for name in needed)
    if header is None or scans is None or offsets is None:
        if not arrays.keys() >= set(needed):
            faults.append(f"{prefix}scans needs jpeg_header and {prefix}offsets beside it")
        return 0, _nothing
    if header.dtype != np.uint8 or scans.dtype != np.uint8 or header.ndim != 1 or scans.ndim != 1:
        faults.append(f"jpeg_header and {prefix}scans must be uint8 [bytes]")
        return 0, _nothing
    whole = np.issubdtype(offsets.dtype, np.integer) and offsets.ndim == 1 and len(offsets) > 0
    if not whole or int(offsets[0]) < 0 or int(offsets[-1]) > len(scans) or bool(np.any(np.diff(offsets) < 0)):
        faults.append(f"{prefix}offsets must be rising integers [N + 1] within {prefix}scans")
        return 0, _nothing
    start = header.tobytes()
    return len(offsets) - 1, lambda index: start + scans[offsets[index] : offsets[index + 1]].tobytes()


def _absent(arrays: Arrays, name: str) -> list[str]:
    """The fault of an array that is not there; one of objects is, and was told."""
    return [] if name in arrays else [f"there is no {name}"]


def _nothing(index: int) -> Content:
    raise IndexError(index)


def _class_names(arrays: Arrays, parts: Mapping[str, _Part], faults: list[str]) -> dict[int, str]:
    """Label -> class: the names given; else the numbers used, padded so that they sort as numbers do."""
    used = np.unique(np.concatenate([part.labels for part in parts.values()])) if parts else np.empty(0, np.int64)
    highest = int(used[-1]) if len(used) else -1
    given = arrays.get("class_names")
    if given is None:
        return {label: str(label).zfill(len(str(highest))) for label in used.tolist()}
    if given.ndim != 1 or given.dtype.kind not in "US":
        faults.append(f"class_names is {given.dtype} {list(given.shape)}, expected text [classes]")
        return {}
    names = [class_name(n.decode("utf-8", "backslashreplace") if isinstance(n, bytes) else str(n)) for n in given]
    if len(set(names)) < len(names):
        faults.append("class_names has a name twice")
    if not all(names):
        faults.append("class_names has an empty name")
    if highest >= len(names):
        faults.append(f"labels reach {highest} but class_names has {len(names)} names")
    return dict(enumerate(names))


def _listing(parts: Mapping[str, _Part], names: Mapping[int, str], unknown: Sequence[str]) -> Listing:
    rows = [
        (Entry(PREFIXES[prefix], names[label], f"{prefix}images[{index}]"), prefix, index)
        for prefix, part in parts.items()
        for index, label in enumerate(part.labels.tolist())
    ]
    rows.sort(key=lambda row: (SPLITS.index(row[0].split or "train"), row[0].label, row[2]))
    used = {(entry.split, entry.label) for entry, _, _ in rows}
    first = None if "" in parts else "train"
    stray = Finding("stray", "arrays that are not known", [printable(name) for name in unknown], "They are not read")
    return Listing(
        entries=[entry for entry, _, _ in rows],
        content=lambda i: parts[rows[i][1]].picture(rows[i][2]),
        empty=[(first, name) for name in names.values() if (first, name) not in used],
        warnings=[stray] if stray.count else [],
        block=_block(parts, [(prefix, index) for _, prefix, index in rows]),
    )


def _block(parts: Mapping[str, _Part], order: Sequence[tuple[str, int]]) -> Pixels | None:
    """All pictures in that order as one array, if all are pixels of one shape and none is see-through."""
    pixels = [part.pixels for part in parts.values() if part.pixels is not None]
    if len(pixels) < len(parts) or len({p.shape[1:] for p in pixels}) != 1 or pixels[0].shape[3] not in (1, 3):
        return None
    starts = dict(zip(parts, np.cumsum([0, *(len(p) for p in pixels)]).tolist(), strict=False))
    return np.concatenate(pixels)[[starts[prefix] + index for prefix, index in order]]
