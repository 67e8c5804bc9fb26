"""How the server is: alive, ready, what it runs, what it has done."""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from ..errors import Problem, retry_after
from ..metrics import CONTENT_TYPE
from ..runtime import Runtime, runtime_of
from ..schemas import InfoOut, NoQuery
from .answers import Json

LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "fastapi", "uvicorn")


async def livez(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
    """Whether the process answers at all, and is worth keeping: not once its device is lost to it."""
    _require_device(runtime_of(request))
    return Json({"status": "alive"})


async def readyz(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
    """Whether requests should be sent here: not while it starts or drains, nor while its store cannot be read."""
    runtime = runtime_of(request)
    if runtime.state != "ready":
        raise Problem(503, f"the server is {runtime.state}", headers=retry_after(1.0))
    if runtime.trouble is not None:
        raise Problem(503, runtime.trouble, headers=retry_after(1.0))
    _require_device(runtime)
    return Json({"status": "ready"})


def _require_device(runtime: Runtime) -> None:
    if runtime.state == "ready" and runtime.serving.lost:
        raise Problem(503, "the device computes nothing any more; start the server anew")


async def metrics(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
    """Metrics in Prometheus' text format."""
    text = await asyncio.to_thread(runtime_of(request).metrics.text)  # long where many tasks are asked for
    return Response(text, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})


async def info(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
    """What runs here: versions, backbone, device and every effective setting; secrets are never shown."""
    runtime = runtime_of(request)
    backbone = runtime.store.backbone.manifest
    stats = runtime.serving.stats()
    return Json(
        InfoOut(
            name="taskpack",
            version=version("taskpack"),
            libraries={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            backbone={
                "digest": runtime.store.backbone_digest,
                "arch": backbone.arch,
                "keep": backbone.keep,
                "preprocess": backbone.preprocess.model_dump(mode="json"),
            },
            tasks=await asyncio.to_thread(runtime.store.task_count),
            device=stats.device,
            dtype=stats.dtype,
            settings=runtime.effective(),
        )
    )
