"""`POST /predict?task=auto`: which of the caller's tasks the images are for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch

from masks_store import Guess, Version

from ..auth import Caller
from ..errors import Problem
from ..images import Bad, Pixels
from ..runtime import Runtime
from .deadlines import due

AUTO = "auto"


async def named(
    runtime: Runtime, caller: Caller, decoded: Sequence[Pixels | Bad], label: str, deadline: float
) -> tuple[Version, Guess]:
    """The version that the images are for, and how sure that is.

    Args:
        runtime: has the store and the engine.
        caller: only tasks that it may use are candidates.
        decoded: the images; bad ones tell nothing.
        label: `stable` or `canary`: which version of each task is a candidate.
        deadline: by time.monotonic().

    Raises:
        Problem: 400 for anything but a label, 404 where no task can be named, 422 where no image could be read or
            they are for no task here.
        DeadlinePassed: what tells the tasks apart was not there in time, or the engine's turn did not come.
    """
    if label not in ("stable", "canary"):
        raise Problem(400, "version: with task=auto only a label, stable or canary, says which versions are meant")
    good = [image for image in decoded if not isinstance(image, Bad)]
    if not good:
        faults = [f"image {i}: {image.reason}" for i, image in enumerate(decoded) if isinstance(image, Bad)]
        raise Problem(422, "no image could be read, so no task can be named", faults)
    async with due(deadline, "what tells the tasks apart was being read"):
        candidates = {v.version: v for v in await runtime.labelled(label) if caller.may_use(v.task)}
        inference = await runtime.namer.among(list(candidates))
    if inference is None:
        raise Problem(
            404,
            f"no task with a {label} version here can be named by its images: their artifacts carry no sums for it; "
            "name the task, or train it on a store whose backbone keeps weights of its own",
        )
    projected = await runtime.serving.project(np.stack(good), deadline=deadline)
    async with due(deadline, "the tasks were being told apart"):
        guess = await asyncio.to_thread(inference.guess, torch.from_numpy(projected.logits))
    threshold = runtime.settings.auto_threshold
    if guess.score < threshold:
        task = candidates[guess.version].task
        raise Problem(
            422,
            f"the images are for no task here: of the nearest, {task!r}, only {guess.score:.1%} of its own images are "
            f"less typical, and {threshold:.1%} are asked; name the task if you know it",
        )
    return candidates[guess.version], guess
