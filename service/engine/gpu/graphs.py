"""Record a forward as a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import torch

from ..stages import Recorded

WARM_UPS = 3  # lets the libraries choose their algorithms and make their workspaces before anything is recorded
_alone = threading.Lock()  # whoever records has the recording stream to himself


def capture(work: Callable[[], None], stream: torch.cuda.Stream | None) -> Recorded:
    """`stages.Capture` for a GPU. The graph keeps what `work` allocates in memory of its own.

    Raises:
        RuntimeError: the work does something that cannot be recorded, or there is too little memory.
    """
    assert stream is not None
    with _alone:
        stream.synchronize()  # what the work reads is there
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # tries cuDNN's algorithms
        try:
            return _record(work, _recording_stream(stream.device))
        finally:
            torch.backends.cudnn.benchmark = benchmark


def _record(work: Callable[[], None], stream: torch.cuda.Stream) -> Recorded:
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    stream.synchronize()
    torch.cuda.empty_cache()  # as recording does too: what is reserved then grows by what the graph keeps
    before = torch.cuda.memory_reserved(stream.device)
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads may go on allocating for their own forwards meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return Recorded(graph.replay, max(0, torch.cuda.memory_reserved(stream.device) - before))


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Torch hands out few streams, in turn: one of another priority is no stage's, whose work would be recorded too."""
    return torch.cuda.Stream(device, priority=-1)
