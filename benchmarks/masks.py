"""Coded masks: size against the entropy bound, and decoding speed.

    python benchmarks/masks.py [--bits 8000000] [--arch resnet50] [--rounds 7]        under half a minute, one thread

Random masks at several shares of ones, then a network's ten nested claims over its real layers. Speed is bitmap
bytes (bits / 8) per second of this process's CPU time, median of the rounds, from payload to one bool per position.
Targets: at most 1.03 x the entropy bound for shares from .1 up, 1.05 below; 100 MB of bitmap per second from .1 up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from masks_store import bitmask, build, packable

SHARES = (0.5, 0.4, 0.25, 0.1, 0.075, 0.05, 0.02, 0.01, 0.001)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of this process that `work` takes."""
    taken: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def row(mask: bitmask.Bits, rounds: int) -> dict[str, float | str]:
    """Size and speed of one mask, after a check that it decodes to itself."""
    coded = bitmask.encode(mask)
    assert np.array_equal(bitmask.decode(coded), mask)
    megabytes = mask.size / 8e6
    return {
        "codec": coded.codec,
        "ratio": len(coded.payload) / bitmask.entropy_bound(coded.bits, coded.ones),
        "encode": megabytes / seconds(lambda: bitmask.encode(mask), 1),
        "decode": megabytes / seconds(lambda: bitmask.decode(coded), rounds),
    }


def nested_claims(arch: str, keep: float, take: float, tasks: int) -> dict[str, float]:
    """A backbone's kept mask and `tasks` claims of `take` of what is free, each coded over what is free before it."""
    random = np.random.default_rng(0)
    coded, bound, raw = 0, 0.0, 0
    for weight in packable(build(arch)).values():
        free = weight.numel()
        for share in (keep, *[take] * tasks):
            mask = random.random(free) < share
            out = bitmask.encode(mask)
            coded, bound = coded + len(out.payload), bound + bitmask.entropy_bound(out.bits, out.ones)
            raw, free = raw + (weight.numel() + 7) // 8, free - out.ones
    return {"coded_mb": coded / 1e6, "bound_mb": bound / 1e6, "separate_bitmaps_mb": raw / 1e6, "ratio": coded / bound}


def machine() -> str:
    """The processor's name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores"


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=8_000_000, help="positions in each random mask")
    parser.add_argument("--arch", default="resnet50", help="whose layers the nested claims are of")
    parser.add_argument("--rounds", type=int, default=7, help="decodings timed, of which the median counts")
    arguments = parser.parse_args(given)

    print(f"{'ones':>6}  {'codec':8} {'x entropy':>9} {'encode MB/s':>12} {'decode MB/s':>12} {'with zlib':>10}")
    rows: dict[str, dict[str, float | str]] = {}
    fast = bitmask.inflater
    for share in SHARES:
        mask = np.random.default_rng(0).random(arguments.bits) < share
        bitmask.inflater = fast
        found = row(mask, arguments.rounds)
        bitmask.inflater = zlib
        coded = bitmask.encode(mask)
        found["decode_zlib"] = arguments.bits / 8e6 / seconds(lambda c=coded: bitmask.decode(c), arguments.rounds)
        rows[str(share)] = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
        print(
            f"{share:>6}  {found['codec']:8} {found['ratio']:>9.4f} {found['encode']:>12.0f} {found['decode']:>12.0f}"
            f" {found['decode_zlib']:>10.0f}"
        )
    bitmask.inflater = fast
    claims = {f"keep {keep}": nested_claims(arguments.arch, keep, 0.25, 10) for keep in (0.5, 0.25)}
    for name, sizes in claims.items():
        print(
            f"{arguments.arch}, {name}, ten nested claims: {sizes['coded_mb']:.2f} MB, {sizes['ratio']:.4f} x entropy;"
            f" separate bitmaps {sizes['separate_bitmaps_mb']:.1f} MB"
        )
    worst_dense = max(float(rows[str(s)]["ratio"]) for s in SHARES if s >= 0.1)
    worst_sparse = max(float(rows[str(s)]["ratio"]) for s in SHARES if s < 0.1)
    slowest = min(float(rows[str(s)]["decode"]) for s in SHARES if s >= 0.1)
    result = {
        "benchmark": "masks",
        "bits": arguments.bits,
        "worst_ratio_from_0.1": worst_dense,
        "worst_ratio_below_0.1": worst_sparse,
        "slowest_decode_mb_s_from_0.1": slowest,
        "reached": worst_dense <= 1.03 and worst_sparse <= 1.05 and slowest >= 100,
        "rows": rows,
        "arch": arguments.arch,
        "claims": {name: {k: round(v, 4) for k, v in sizes.items()} for name, sizes in claims.items()},
        "workers": 1,
        "threads": 1,
        "rounds": arguments.rounds,
        "inflater": fast.__name__,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            "isal": metadata.version("isal") if fast is not zlib else None,
        },
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
