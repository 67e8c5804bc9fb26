"""Requests one after another, each alone, and what a server adds to their forward; for `benchmarks.server`."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from benchmarks.peers.load import PeerFailed
from benchmarks.peers.tasks import Tasks


@dataclass(frozen=True)
class Lone:
    """Milliseconds of a request.

    Attributes:
        forward: in the server, as it tells.
        added: all that is neither that nor decoding.
        over_bare: all that is neither decoding nor the engine's bare forward, as it took in the same round.
    """

    forward: float
    added: float
    over_bare: float


def lone_requests(url: str, tasks: Tasks, bare_ms: float, count: int = 100) -> list[Lone]:
    """Requests one after another, by a client that does next to nothing."""
    draw, taken = random.Random(0), list[Lone]()
    path, headers = f"/predict?task={tasks.names[0]}", {"Content-Type": "image/jpeg"}
    with contextlib.closing(http.client.HTTPConnection(httpx.URL(url).netloc.decode(), timeout=60)) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.request("POST", path, draw.choice(tasks.files), headers)
            response = connection.getresponse()
            body = response.read()
            took = (time.perf_counter() - began) * 1e3
            if response.status != 200:
                raise PeerFailed(f"{response.status}: {body.decode()}")
            timing = json.loads(body)["timing_ms"]
            beside = took - timing["decode"]
            taken.append(Lone(timing["infer"], beside - timing["infer"], beside - bare_ms))
    return taken


def of(requests: Sequence[Lone], part: str, share: float) -> float:
    """The milliseconds of a part that this share of requests does not exceed."""
    return percentile([getattr(one, part) for one in requests], share)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
