"""How long networks take, measured side by side so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

ROUNDS, LEAST_ROUNDS = 30, 5


def interleaved(calls: Mapping[str, Callable[[], object]], *, budget: float = 3.0) -> dict[str, float]:
    """Median CPU seconds of each call, over rounds in which every call is made once.

    CPU time of the calling thread: what else runs on the machine does not count, and neither do other threads, so the
    calls must compute in this one.

    Args:
        calls: name -> what is timed; each is called once before the first round.
        budget: seconds per call after which no further round begins, once `LEAST_ROUNDS` are done.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget * len(calls)
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            started = time.thread_time()
            call()
            taken[name].append(time.thread_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def per_image(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """CPU milliseconds of an image by network: eager, channels-last, in interleaved rounds.

    Args:
        networks: in eval mode; their weights are laid out channels-last and stay so.
        images: float32 [B, 3, size, size]: one batch.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    laid = {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        taken = interleaved({name: partial(network, images) for name, network in laid.items()})
    return {name: 1000 * seconds / len(images) for name, seconds in taken.items()}
