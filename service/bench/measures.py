"""Numbers of one store on one machine: its tasks in the engine without HTTP, then the server under load.

Everything is measured beside what it is compared with, in turns, and told as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from masks_store import InvalidInput, Overlay, Store, Version, View, probe_faults, unpack_images

from ..engine import DeviceOverlay, Engine, Pictures, Sight, VersionFailed, computing_in, find_device
from ..memory import plan
from ..residency import Record, Residency
from .load import under_load
from .options import Options
from .rows import LeftOut, Row, side_by_side
from .separate import SeparateModel

MOST_MIXED = 32
"""Tasks of a mixed batch: as many images as the server puts into one forward, unless told otherwise."""

CLASSES = 10
"""Of the head under which the backbone alone is measured."""

Found = Row | LeftOut


def measure(store: Store, options: Options, say: Callable[[str], None] = lambda _: None) -> Generator[Found]:
    """Measure a store's tasks: `forward`, `swap`, `mixed`, then `load`.

    Args:
        store: open; nothing in it changes but the remembered results of self-tests.
        options: how.
        say: told what is measured next.

    Yields:
        Each row when it is known, and what is left out.

    Raises:
        InvalidInput: tasks that are not there, all of them; no such device.
        BenchFailed: the server or the separate models failed.
    """
    versions = _chosen(store, options.tasks)
    with computing_in(options.threads):
        stand = _Stand(store, versions, options)
        yield from _forwards(stand, say)
        yield from _swap(stand, say)
        yield from _mixed(stand, say)
    del stand  # its memory is not the load's
    yield from under_load(store, versions, options, say)


def _chosen(store: Store, names: Sequence[str]) -> list[Version]:
    """The stable versions of the named tasks, or of all, by name."""
    stable = {v.task: v for v in store.versions() if "stable" in v.labels and v.state == "ready"}
    there = {task.name for task in store.tasks()}
    faults = [
        f"task {name!r} has no stable version" if name in there else f"there is no task {name!r}"
        for name in dict.fromkeys(names)
        if name not in stable
    ]
    if faults:
        raise InvalidInput(f"{len(faults)} task(s) cannot be measured; `taskpack ls` lists what there is", faults)
    return [stable[name] for name in sorted(set(names) or stable)]


@dataclass(frozen=True)
class _Entrant:
    """A task that is measured, and its record, held for the whole run."""

    version: Version
    record: Record

    @property
    def kind(self) -> str:
        """Its method; clnp for whatever runs a smaller network."""
        return "clnp" if self.record.units else self.version.method

    @property
    def label(self) -> str:
        """As tables name it."""
        return f"{self.version.task} ({self.kind})"

    @property
    def place(self) -> tuple[int, str]:
        """The first of a kind is built on the fewest others; then names decide."""
        return len(self.record.lineage), self.version.task


class _Stand:
    """An engine that holds a store's tasks, and those of them that are measured."""

    def __init__(self, store: Store, versions: Sequence[Version], options: Options) -> None:
        self.store, self.options = store, options
        self.dtype: Literal["fp32", "bf16"] = options.chosen_dtype()
        planned = plan(find_device(options.device))
        self.engine = Engine(store.backbone, device=options.device, slot_bytes=planned.slots)
        self.residency = Residency(store, self.engine, host_bytes=planned.host, overlay_bytes=planned.overlays)
        self.residency.start()
        self.entrants: list[_Entrant] = []
        self.broken: list[LeftOut] = []
        for version in versions:
            try:
                self.entrants.append(_Entrant(version, self.residency.lease(version.version)))
            except VersionFailed as error:
                self.broken.append(LeftOut("forward", f"{version.task}: {error}"))

    def task(self, entrant: _Entrant) -> DeviceOverlay:
        """A task's own tensors on the device."""
        return self.residency.load(entrant.record, self.dtype)

    def faults(self, entrant: _Entrant) -> list[str]:
        """What is wrong with a task's self-test on this engine."""
        artifact = self.residency.artifacts.read(entrant.version.version)
        pictures = unpack_images(artifact.tensors["probe.images"], self.store.backbone.manifest.image_size)
        (got,) = self.engine.run(entrant.record.sight, self.dtype, [pictures], [self.task(entrant)])
        return probe_faults(artifact.tensors["probe.logits"], torch.from_numpy(got), self.dtype)

    def pictures(self, n: int) -> Pictures:
        """Noise, uint8 [n, size, size, 3]."""
        size = self.store.backbone.manifest.image_size
        return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)

    def separate(self, entrant: _Entrant) -> SeparateModel:
        """The same task as a network of its own."""
        view = self.store.view(entrant.version.version)
        return SeparateModel(self.store.backbone, view, self.dtype, self.engine.device)


def _forwards(stand: _Stand, say: Callable[[str], None]) -> Generator[Found]:
    """One task of each kind in the engine, beside the same task as a separate model."""
    yield from stand.broken
    kinds = sorted({entrant.kind for entrant in stand.entrants})
    if "linear" not in kinds and stand.store.backbone.manifest.keep:
        yield from _compared(stand, "the backbone alone", *_alone(stand), say)
    for kind in kinds:
        entrant = min((e for e in stand.entrants if e.kind == kind), key=lambda e: e.place)
        faults = stand.faults(entrant)
        if faults:
            yield LeftOut("forward", f"{entrant.label}: {'; '.join(faults)}")
            continue
        yield from _compared(
            stand, entrant.label, entrant.record.sight, stand.task(entrant), stand.separate(entrant), say
        )


def _alone(stand: _Stand) -> tuple[Sight, DeviceOverlay, SeparateModel]:
    """The backbone under a head of zeros, in the engine and as a separate model."""
    backbone = stand.store.backbone
    head = torch.zeros(CLASSES, backbone.features)
    overlay = Overlay({}, {}, {}, head, torch.zeros(CLASSES))
    view = View("", "linear", backbone.digest, {}, overlay, (), backbone.manifest.preprocess)
    separate = SeparateModel(backbone, view, stand.dtype, stand.engine.device)
    return Sight(backbone.digest, ()), stand.engine.bare(head, stand.dtype), separate


def _compared(
    stand: _Stand, label: str, sight: Sight, task: DeviceOverlay, separate: SeparateModel, say: Callable[[str], None]
) -> Generator[Row]:
    for batch in stand.options.batches:
        say(f"forward: {label}, batch {batch}")
        images = stand.pictures(batch)
        value, other = side_by_side(
            partial(stand.engine.run, sight, stand.dtype, [images], [task]),
            partial(separate, images),
            stand.options.seconds,
        )
        yield Row("forward", label, batch, "ms", "engine", value, "separate model", other)


def _swap(stand: _Stand, say: Callable[[str], None]) -> Generator[Found]:
    """A view that has to be written for the batch, beside one that lies in a slot."""
    own = [e for e in stand.entrants if e.kind != "clnp" and e.version.version == e.record.sight.key]
    if not own:
        yield LeftOut("swap", "no task here has masks of its own (packnet, piggyback): there is no view to swap")
        return
    entrant = min(own, key=lambda e: (e.kind != "packnet", e.place))
    sight, task = entrant.record.sight, stand.task(entrant)
    for batch in stand.options.batches:
        say(f"swap: {entrant.label}, batch {batch}")
        hot = partial(stand.engine.run, sight, stand.dtype, [stand.pictures(batch)], [task])

        def cold(hot: Callable[[], object] = hot) -> object:
            stand.engine.slots.drop(sight.key)
            return hot()

        value, other = side_by_side(cold, hot, stand.options.seconds)
        yield Row("swap", entrant.label, batch, "ms", "not in a slot", value, "in a slot", other)


def _mixed(stand: _Stand, say: Callable[[str], None]) -> Generator[Found]:
    """One image for each of many tasks in one forward, beside as many images for one of them."""
    groups: dict[Sight, list[_Entrant]] = {}
    for entrant in stand.entrants:
        if entrant.kind in ("clr", "bn"):
            groups.setdefault(entrant.record.sight, []).append(entrant)
    members = max(groups.values(), key=len, default=[])
    if len(members) < 2:
        yield LeftOut("mixed", "no two tasks here share a base under norms or adapters of their own (clr, bn)")
        return
    if len(members) > MOST_MIXED:
        yield LeftOut("mixed", f"{len(members) - MOST_MIXED} of {len(members)} tasks: a batch has {MOST_MIXED} images")
        members = members[:MOST_MIXED]
    say(f"mixed: {len(members)} tasks in one batch")
    sight, tasks, images = members[0].record.sight, [stand.task(e) for e in members], stand.pictures(len(members))
    value, other = side_by_side(
        partial(stand.engine.run, sight, stand.dtype, list(images[:, None]), tasks),
        partial(stand.engine.run, sight, stand.dtype, [images], tasks[:1]),
        stand.options.seconds,
    )
    beside = f"all for {members[0].label}"
    yield Row("mixed", f"{len(members)} tasks", len(members), "ms", "an image each", value, beside, other)
