"""What /metrics tells, in Prometheus' text format. One registry per app, nothing global.

Counters of the HTTP edge are kept here; those of the engine are read from `Serving.stats()` when somebody scrapes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .edge.record import RequestRecord
from .engine import Distribution
from .serving import Serving

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

MOST_GONE = 10_000
"""Tasks that are remembered as gone, for requests that began before."""

EDGE = {
    "taskpack_requests_total": "Requests answered, by registered task (empty where none was named) and status.",
    "taskpack_request_seconds": "Time from a request's head to the end of its answer.",
    "taskpack_stage_seconds": "Time of a stage: read, decode, queue, infer; at a registration read, register, probe.",
    "taskpack_rejected_total": "Requests that were turned away, by reason.",
}
ENGINE = {
    "taskpack_batch_size": "Images in one forward pass.",
    "taskpack_batch_tasks": "Tasks in one forward pass.",
    "taskpack_inferences_total": "Images that were classified.",
    "taskpack_batches_total": "Forward passes.",
    "taskpack_queue_depth": "Images waiting for a forward pass.",
    "taskpack_tasks": "Versions by state.",
    "taskpack_slot_bytes": "Memory taken by materialised views.",
    "taskpack_slot_hits_total": "Batches whose view was materialised already.",
    "taskpack_slot_misses_total": "Batches whose view had to be made.",
    "taskpack_slot_load_seconds": "Time to make a view.",
    "taskpack_slot_age_at_eviction_seconds": "How long an evicted view had not been used.",
}
METRICS = {**EDGE, **ENGINE}
"""Every metric and its help text."""


class Metrics:
    """The app's metrics."""

    def __init__(self) -> None:
        self._codes: dict[str, set[str]] = {}  # task -> statuses that were counted for it
        self._gone: dict[str, float] = {}  # task -> when it was last gone, by time.monotonic(); the earliest first
        disable_created_metrics()  # a `_created` series beside every other one, which nobody asked for
        self._registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "taskpack_requests", EDGE["taskpack_requests_total"], ("task", "code"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "taskpack_request_seconds", EDGE["taskpack_request_seconds"], buckets=SECONDS, registry=self._registry
        )
        self.stage_seconds = Histogram(
            "taskpack_stage_seconds",
            EDGE["taskpack_stage_seconds"],
            ("stage",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.rejected = Counter(
            "taskpack_rejected", EDGE["taskpack_rejected_total"], ("reason",), registry=self._registry
        )

    def observe(self, serving: Serving) -> None:
        """Also tell what the engine has counted."""
        self._registry.register(_EngineFigures(serving))

    def answered(self, record: RequestRecord, status: int) -> None:
        """Count a request that has ended. The record holds names of tasks that were registered then.

        One that began before its task went is counted where no task was named: nothing would take its series away.
        """
        code = str(status)
        here = [task for task in dict.fromkeys(record.tasks) if self._gone.get(task, -math.inf) < record.started]
        for task in here or ("",):
            self._codes.setdefault(task, set()).add(code)
            self.requests.labels(task, code).inc()
        self.request_seconds.observe(record.elapsed)
        for stage, seconds in record.stages.items():
            self.stage_seconds.labels(stage).observe(seconds)

    def forget(self, task: str) -> None:
        """Take away what was counted for a task that is registered no more. On the event loop, as `answered`."""
        for code in self._codes.pop(task, ()):
            self.requests.remove(task, code)
        self._gone.pop(task, None)
        self._gone[task] = time.monotonic()
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def text(self) -> bytes:
        """The page that Prometheus scrapes."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """Reads the engine's figures when somebody scrapes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric of `ENGINE`."""
        stats = self._serving.stats()
        yield _histogram("taskpack_batch_size", stats.batch_size)
        yield _histogram("taskpack_batch_tasks", stats.batch_tasks)
        yield _counter("taskpack_inferences_total", stats.inferences)
        yield _counter("taskpack_batches_total", stats.batches)
        yield _gauge("taskpack_queue_depth", stats.queue_images)
        versions = GaugeMetricFamily("taskpack_tasks", ENGINE["taskpack_tasks"], labels=("state",))
        for state, count in stats.versions.items():
            versions.add_metric((state,), count)
        yield versions
        yield _gauge("taskpack_slot_bytes", stats.slot_bytes)
        yield _counter("taskpack_slot_hits_total", stats.slot_hits)
        yield _counter("taskpack_slot_misses_total", stats.slot_misses)
        yield _histogram("taskpack_slot_load_seconds", stats.slot_load_seconds)
        yield _histogram("taskpack_slot_age_at_eviction_seconds", stats.slot_age_at_eviction_seconds)


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(name.removesuffix("_total"), ENGINE[name], value=value)


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, ENGINE[name], value=value)


def _histogram(name: str, seen: Distribution) -> Metric:
    below = [*itertools.accumulate(seen.counts)]
    buckets = list(zip([*map(str, seen.bounds), "+Inf"], map(float, below), strict=True))
    return HistogramMetricFamily(name, ENGINE[name], buckets=buckets, sum_value=seen.total)
