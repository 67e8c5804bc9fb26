"""A prediction's deadline, over the steps that have none of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..engine import DeadlinePassed


@asynccontextmanager
async def due(deadline: float, what: str) -> AsyncGenerator[None]:
    """Give the block up when the deadline passes; what a thread has begun for it ends unheard.

    Args:
        deadline: by time.monotonic().
        what: what is done in the block, for the message.

    Raises:
        DeadlinePassed: the block was not done in time.
    """
    scope = asyncio.timeout(deadline - time.monotonic())
    try:
        async with scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise DeadlinePassed(f"the deadline passed while {what}") from None
        raise
