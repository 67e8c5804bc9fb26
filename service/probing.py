"""Self-tests through the serving engine: a version answers on a device only if its probe passes there.

Results are cached in the store by version, engine build, device and dtype. Where the engine
computes in bf16, a version whose probe fails in bf16 is computed in fp32; one that fails in both never answers here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from masks_store import (
    Artifact,
    Backbone,
    Store,
    TaskpackError,
    View,
    overlay_of,
    probe_faults,
    unpack_images,
    weights_key,
)

from .engine import Draining, Engine, Logits, Sight
from .lineages import folds, in_pool, load_pooled, load_units
from .memory import trim
from .residency import Record, Residency
from .workers import Work

log = logging.getLogger("taskpack.service")

MOST_FRESH = 1000
CHECK_S = 0.5
"""How often the background looks for versions that other processes registered."""
TRIM_S = 5.0
"""How often it gives freed memory back at most: that holds other threads up for tens of milliseconds."""


class Probes:
    """See the module. Every method blocks, reads files, and may be called from any thread.

    Args:
        store: keeps the results.
        engine: what is tested.
        residency: whose versions are tested.
        run: has the engine do one work, in turn with the requests.
        dtypes: what to compute in, the best first.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        residency: Residency,
        run: Callable[[Work], Logits],
        dtypes: Sequence[str],
    ) -> None:
        self._store = store
        self._engine = engine
        self._residency = residency
        self._run = run
        self._dtypes = dtypes
        self._fresh: dict[tuple[str, str], list[str]] = {}  # (version, dtype) -> faults, of versions being registered
        self._unkept = ""

    def recall(self) -> None:
        """Settle what was probed on this engine build and device before; one query a dtype, however many versions."""
        build, device = self._engine.build, self._engine.device_name
        known = {dtype: self._store.probe_results(build, device, dtype) for dtype in self._dtypes}
        for version in self._residency.unchecked():
            record = self._residency.hold(version)
            if record is None:
                continue
            reasons: list[str] = []
            for dtype in self._dtypes:
                result = known[dtype].get(version)
                if result is None:
                    break
                if result.ok:
                    self._residency.settle(record, dtype)
                    break
                reasons.append(result.detail)
            else:
                self._fail(record, reasons)
            self._residency.release(record)

    def check(self, record: Record) -> None:
        """Make a leased version `ready` or `failed`, if it is neither yet.

        Raises:
            Draining: the engine was stopped first; nothing is decided.
        """
        if record.status != "loading":
            return
        reasons: list[str] = []
        for dtype in self._dtypes:
            faults = self._faults(record, dtype)
            if not faults:
                self._residency.settle(record, dtype)
                return
            reasons += faults
        self._fail(record, reasons)

    def _fail(self, record: Record, reasons: Sequence[str]) -> None:
        log.error("version %s fails its probe on %s: %s", record.version, self._engine.device_name, "; ".join(reasons))
        self._residency.settle(record, None, "; ".join(reasons))

    def prober(self, backbone: Backbone, lineage: Sequence[Artifact], view: View) -> Tensor:
        """`masks_store.Prober`: the fp32 logits of a version that need not be in the store yet.

        What it finds here in other dtypes too is remembered for the version's registration.

        Returns:
            float32 [N, classes].
        """
        leaf = lineage[-1]
        units = any(artifact.manifest.method == "clnp" for artifact in lineage)
        claims = () if units else tuple(a.version for a in lineage if a.manifest.claims)
        sight = Sight(weights_key(backbone, lineage), claims)
        held = self._hold(lineage)
        try:
            kept = {record.version for record in held}  # what nobody holds may leave the pool meanwhile
            pooled = units or (kept.issuperset(claims) and in_pool(self._engine, lineage))
            found: dict[str, Tensor] = {}
            for dtype in dict.fromkeys(("fp32", *self._dtypes)):
                if units:
                    task = load_units(self._engine, backbone, lineage, dtype, view)
                elif pooled:
                    task = load_pooled(self._engine, backbone, lineage, dtype)
                else:
                    overlay, fold = overlay_of(lineage), folds(lineage)
                    task = self._engine.load(leaf.version, overlay, dtype, folds=fold, weights=view.weights, alone=True)
                images = unpack_images(leaf.tensors["probe.images"], backbone.manifest.image_size)
                found[dtype] = torch.from_numpy(self._run(Work(sight, dtype, images, task)))
                if len(self._fresh) >= MOST_FRESH:
                    self._fresh.clear()
                self._fresh[leaf.version, dtype] = _compare(leaf, found[dtype], dtype)
            return found["fp32"]
        finally:
            for record in held:
                self._residency.release(record)

    def _hold(self, lineage: Sequence[Artifact]) -> list[Record]:
        """Lease what is known of a lineage, so that no claim of it leaves the pool meanwhile."""
        held: list[Record] = []
        for artifact in lineage:
            record = self._residency.hold(artifact.version)
            held += [record] if record is not None else []
        return held

    def _faults(self, record: Record, dtype: str) -> list[str]:
        key = (record.version, self._engine.build, self._engine.device_name, dtype)
        faults = self._fresh.pop((record.version, dtype), None)
        if faults is None:
            known = self._store.probe_result(*key)
            if known is not None:
                return [] if known.ok else [known.detail]
            try:
                faults = self._probe(record, dtype)
            except Draining:
                raise
            except Exception as error:  # whatever a device raises is no result: it is tried again at the next start
                log.error("the probe of version %s cannot be run", record.version, exc_info=error)
                return ["its probe cannot be run"]
        try:
            self._store.record_probe(*key, not faults, "; ".join(faults))
            self._unkept = ""
        except TaskpackError as error:
            if str(error) != self._unkept:  # once, not for every version of a store that may only be read
                self._unkept = str(error)
                log.warning("the results of probes cannot be kept: %s", error)
        return faults

    def _probe(self, record: Record, dtype: str) -> list[str]:
        artifact = self._residency.artifacts.read(record.version)
        pictures = unpack_images(artifact.tensors["probe.images"], self._store.backbone.manifest.image_size)
        work = Work(record.sight, dtype, pictures, self._residency.load(record, dtype))
        return _compare(artifact, torch.from_numpy(self._run(work)), dtype)


def _compare(artifact: Artifact, got: Tensor, dtype: str) -> list[str]:
    return probe_faults(artifact.tensors["probe.logits"], got, cast(Literal["fp32", "bf16"], dtype))


class Checker:
    """A thread that probes what was not probed here, one version after another.

    With nothing to probe it reads claims ahead, and gives back to the system what reading files has left behind.

    Args:
        store: whose claims the next registration needs.
        residency: whose versions are probed.
        probes: how.
    """

    def __init__(self, store: Store, residency: Residency, probes: Probes) -> None:
        self._store = store
        self._residency = residency
        self._probes = probes
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._woken = threading.Event()
        self._stopped = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def look(self) -> None:
        """There may be a version that was not probed."""
        self._woken.set()

    def stop(self) -> None:
        """End after what has begun; blocks."""
        self._stopped = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        claims_read, reads, trimmed = False, 0, -TRIM_S
        while not self._stopped:
            self._woken.clear()
            for version in self._residency.unchecked():
                claims_read = False
                if not self._check(version):
                    return
            if not claims_read:
                self._read_claims()
                claims_read = True
            if self._residency.artifacts.reads != reads and time.monotonic() - trimmed > TRIM_S:
                reads, trimmed = self._residency.artifacts.reads, time.monotonic()
                trim()
            self._woken.wait(0.0 if self._stopped else CHECK_S)

    def _check(self, version: str) -> bool:
        """Whether the engine still answers."""
        record = self._residency.hold(version)
        if record is None:
            return True
        try:
            with record.preparing:
                self._probes.check(record)
        except Draining:
            return False
        except (TaskpackError, OSError) as error:
            log.warning("version %s cannot be checked now: %s", version, error)
        finally:
            self._residency.release(record)
        return True

    def _read_claims(self) -> None:
        """Ahead of the next registration, which would have to."""
        try:
            self._store.read_claims(lambda: self._stopped)
        except (TaskpackError, OSError) as error:
            log.warning("the claims cannot be read now: %s", error)
