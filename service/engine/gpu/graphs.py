"""Record a forward as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from ..stages import Recorded, RecordingBroken

WARM_UPS = 3  # lets the libraries choose their algorithms and make their workspaces before anything is recorded


def capture(work: Callable[[], None], stream: torch.cuda.Stream | None) -> Recorded:
    """`stages.Capture` for a GPU, one at a time. The graph keeps what `work` allocates in memory of its own.

    Raises:
        RecordingBroken: the work does something that cannot be recorded.
        RuntimeError: it does not even run, or there is too little memory.
    """
    assert stream is not None
    stream.synchronize()  # what the work reads is there
    return _record(work, _recording_stream(stream.device))


def _record(work: Callable[[], None], stream: torch.cuda.Stream) -> Recorded:
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    stream.synchronize()
    torch.cuda.empty_cache()  # as recording does too: what is reserved then grows by what the graph keeps
    before = torch.cuda.memory_reserved(stream.device)
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    try:
        # thread_local: other threads may go on allocating for their own forwards meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    except RuntimeError as error:
        torch.cuda.set_stream(current)  # torch leaves the block without
        raise RecordingBroken(str(error)) from error
    return Recorded(graph.replay, max(0, torch.cuda.memory_reserved(stream.device) - before))


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Torch hands out few streams, in turn: one of another priority is no stage's, whose work would be recorded too."""
    return torch.cuda.Stream(device, priority=-1)
