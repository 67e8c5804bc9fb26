"""A route of FastAPI that does the least: what HTTP and the framework alone add to a forward, for `benchmarks.server`.

    python -m benchmarks.bare_route STORE --port PORT [--dtype fp32]

It reads the body and lets the engine classify one fixed picture for the store's first task: nothing is decoded,
checked, counted or logged. Its answers have the times that those of `taskpack serve` have, and a class.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request

from masks_store import Store
from service.serving import Serving


def app_of(store: Path, dtype: Any) -> FastAPI:
    """The app; one worker of one thread, as `benchmarks.server` measures the server with."""
    torch.set_num_threads(1)
    opened = Store.open(store)
    serving = Serving(opened, dtype=dtype, workers=1, worker_threads=1)
    version = opened.resolve(opened.tasks()[0].name).version
    picture = np.zeros((1, serving.image_size, serving.image_size, 3), np.uint8)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await serving.start()
        yield
        await serving.stop(1.0)

    app = FastAPI(lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request, task: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        await request.body()
        inference = await serving.infer(version, picture)
        top1 = {"id": int(inference.logits.argmax()), "score": float(inference.logits.max())}
        timing = {"decode": 0.0, "infer": inference.infer_ms}
        return {"task": task, "predictions": [{"labels": [top1]}], "timing_ms": timing}

    return app


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    app = app_of(arguments.store, arguments.dtype)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
