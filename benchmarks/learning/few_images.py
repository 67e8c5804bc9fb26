"""Few images: 5, 20 and all training pictures of a class, for every method on two sets.

    TASKPACK_DATA=DIR python -m benchmarks.learning.few_images --work WORK

time        about half an hour a variant of one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    with five pictures the methods that train little (linear, bn, clr) are ahead of those that train much

flowers89 and pacs_art_painting on a pretrained ResNet-18 at 64 pixels, each task alone in a new store, the methods as
in eight_domains.py, with the learning rates that were chosen there (`--rates`) or the middle ones; the published test
split whole. The number of epochs is the same whatever the number of pictures, so that fewer pictures are shown fewer
times in all, alike for every method. Validation is taken out of the few training pictures, as for any user. `--frozen`
adds what the backbone's own features tell without training: a nearest class mean and a linear probe (frozen.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contest import compete, slug
from .frozen import WAYS, frozen
from .photographs import add_rates, parse, photograph_parser, protocol_of, rates_of, sources_of
from .record import environment, mean_sd, read, table, write

SETS, COUNTS = ("flowers89", "pacs_art_painting"), (5, 20, None)
TASKS = 8
"""What an equal share of PackNet's is a share of, as in eight_domains.py."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, SETS)
    add_rates(parser)
    parser.add_argument("--frozen", action="store_true", help="the backbone's own features, too")
    arguments = parse(parser, argv)
    if arguments.per_class is not None:
        parser.error("--per-class is what this experiment varies")
    path = arguments.out / "few_images.json"
    held = read(path)
    earlier: dict[str, Any] = held.get("counts", {})
    result: dict[str, Any] = {
        "experiment": "few images",
        **environment(),
    }
    result["sets"] = list(dict.fromkeys([*held.get("sets", []), *arguments.sets]))
    result["counts"] = dict(earlier)
    rates = rates_of(arguments)
    for count in COUNTS:
        protocol = protocol_of(arguments, count)
        pictures = "all" if count is None else str(count)
        known: dict[str, Any] = earlier.get(pictures, {}).get("sets", {})
        if known and earlier[pictures]["protocol"] != protocol.as_json():
            parser.error(f"{path} holds runs of another protocol; give --out another folder")
        result["counts"][pictures] = part = {"protocol": protocol.as_json(), "sets": dict(known)}
        sources = sources_of(arguments.data, arguments.sets, arguments.work / "sources", count)
        part["frozen"] = before = earlier.get(pictures, {}).get("frozen")
        if arguments.frozen:
            now = frozen(sources, protocol, arguments.seeds[0], arguments.work / f"frozen-{pictures}")
            if before and before["setting"] != now["setting"]:
                parser.error(f"{path} holds frozen features of another setting; give --out another folder")
            part["frozen"] = now | {way: {**(before or {}).get(way, {}), **now[way]} for way in WAYS}
        for task, source in sources.items():
            part["sets"][task] = own = dict[str, Any]()
            where = arguments.work / f"{task}-{count or 'all'}"
            compete(
                own,
                lambda: write(path, result),
                rates,
                {task: source},
                protocol,
                lambda _: arguments.seeds,
                lambda name, seed, where=where: where / f"{slug(name)}-{seed}",
                TASKS,
                known.get(task, {}).get("variants"),
            )
    write(path, result)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """Test accuracy: a row per variant, a column per set and number of pictures; empty where there is none yet."""
    columns = [(task, count) for task in result["sets"] for count in result["counts"]]
    found: dict[str, dict[tuple[str, str], str]] = {}
    for task, count in columns:
        for name, variant in result["counts"][count]["sets"].get(task, {}).get("variants", {}).items():
            tops = [run["tasks"][0]["test_top1"] for run in variant["seeds"] if run["tasks"]]
            if tops:
                found.setdefault(name, {})[task, count] = mean_sd(tops, digits=1)
    for task, count in columns:
        for way in WAYS:
            top1 = (result["counts"][count].get("frozen") or {}).get(way, {}).get(task)
            if top1 is not None:
                found.setdefault(way, {})[task, count] = f"{100 * top1:.1f}"
    rows = [[name, *(own.get(column, "") for column in columns)] for name, own in found.items()]
    return table(["", *(f"{task}, {count} a class" for task, count in columns)], rows)


if __name__ == "__main__":
    main()
