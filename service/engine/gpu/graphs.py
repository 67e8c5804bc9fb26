"""Record a forward as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..stages import Recorded

WARM_UPS = 3  # lets the libraries choose their algorithms and make their workspaces before anything is recorded


def capture(work: Callable[[], None], stream: torch.cuda.Stream | None) -> Recorded:
    """`stages.Capture` for a GPU. The graph keeps what `work` allocates in memory of its own.

    Raises:
        RuntimeError: the work does something that cannot be recorded, or there is too little memory.
    """
    assert stream is not None
    device = stream.device
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # try algorithms, keep the best
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        stream.synchronize()
        return _record(work, stream, device)
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _record(work: Callable[[], None], stream: torch.cuda.Stream, device: torch.device) -> Recorded:
    before = torch.cuda.memory_reserved(device)
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads may go on allocating for their own forwards meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return Recorded(graph.replay, max(0, torch.cuda.memory_reserved(device) - before))
