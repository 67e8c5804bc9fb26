"""The engine's C functions (`native/`): found, and taken only if they were built from this version of the code.

They are built with the package where there is a C compiler. Without them torch's operators do the same.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

log = logging.getLogger("taskpack.service")

VERSION = 3  # native/version.c has the same; changes with the functions
LEVELS = ("any processor", "AVX2", "AVX-512", "AVX-512 with bfloat16")
MASKS = ("taskpack_mask_f32", "taskpack_mask_bf16")
_POINTER, _WHOLE, _REAL, _INT, _UNSIGNED = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int, ctypes.c_uint
SIGNATURES: Mapping[str, tuple[type | None, list[type]]] = {
    **dict.fromkeys(MASKS, (None, [*[_POINTER] * 4, *[_WHOLE] * 3])),
    "taskpack_behind": (
        None,
        [*[_POINTER] * 5, *[_WHOLE] * 4, _INT, _REAL, _REAL, _POINTER, _UNSIGNED, _INT],
    ),
    "taskpack_max_pool": (None, [*[_POINTER] * 3, _INT, _POINTER, _UNSIGNED, _INT]),
    "taskpack_pixels": (None, [*[_POINTER] * 3, _WHOLE, _INT]),
    "taskpack_onednn": (ctypes.c_char_p, [_POINTER]),
    "taskpack_order": (_POINTER, [_POINTER]),
    "taskpack_order_free": (None, [_POINTER]),
    "taskpack_order_bytes": (_WHOLE, [_POINTER]),
    "taskpack_orders_equal": (_INT, [_POINTER] * 2),
    "taskpack_reorder": (_INT, [_POINTER] * 5),
    "taskpack_convolution": (_POINTER, [_POINTER] * 2),
    "taskpack_convolution_free": (None, [_POINTER]),
    "taskpack_convolution_scratch": (_WHOLE, [_POINTER]),
    "taskpack_convolution_moves": (_INT, [_POINTER]),
    "taskpack_convolve": (_INT, [_POINTER] * 6),
    "taskpack_chain": (_WHOLE, [_POINTER, _WHOLE, *[_POINTER] * 5, _INT, _POINTER, _INT]),
}
"""Function -> (type of its result, types of its arguments)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The C functions.

    Attributes:
        library: calls into it let go of the interpreter's lock.
        level: number in LEVELS of the fastest kind of loops that this processor can run.
        parallel: address of the OpenMP function that runs a part of the work on each thread, in the library that torch
            itself computes with, so that both use the same threads; None where it is not found: one thread.
    """

    library: ctypes.CDLL
    level: int
    parallel: int | None


def compiled() -> Compiled | None:
    """The C functions; None where they are not built, or not from this version of the code."""
    return _found()[0]


def describe() -> str:
    """Who writes views and computes adapters on the CPU, and why, for people."""
    return _found()[1]


@cache
def _found() -> tuple[Compiled | None, str]:
    paths = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    return find(next((path for path in paths if path.exists()), None))


def find(path: Path | None) -> tuple[Compiled | None, str]:
    """(what `compiled` gives, what `describe` gives) where the functions are in that file; what is wrong is logged."""
    if path is None:
        return None, "torch's operators, for the package was installed without a C compiler"
    try:
        found = load(path)
    except (OSError, AttributeError, ValueError) as error:
        log.warning(
            "the compiled functions in %s are not of this version of the code (%s): torch's operators do the same, "
            "more slowly. Install the package again to build them: `pip install .`, in a clone `make setup`",
            path.name,
            error,
        )
        return None, "torch's operators, for the compiled functions are of another version"
    return found, f"functions compiled for {LEVELS[found.level]}"


def load(path: Path) -> Compiled:
    """The C functions in a file.

    Raises:
        OSError, AttributeError: no library, or one that lacks a function.
        ValueError: it was built from another version of the code.
    """
    library = ctypes.CDLL(str(path))
    found = library.taskpack_version()
    if found != VERSION:
        raise ValueError(f"version {found}, expected {VERSION}")
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return Compiled(library, library.taskpack_level(), _parallel())


def _parallel() -> int | None:
    """Of the OpenMP library that comes with torch, which is loaded already: no second pool of threads is made."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        function = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None
