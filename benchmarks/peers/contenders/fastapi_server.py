"""Plain FastAPI: every process loads every task's network; a thread of its pool answers a request."""

from __future__ import annotations

import os

import uvicorn
from fastapi import Body, FastAPI
from network import Networks, Options, options

ARGUMENTS = "PEER_ARGUMENTS"


def create_app() -> FastAPI:
    """The app of one process."""
    return app_of(options(os.environ[ARGUMENTS].split("\n")))


def app_of(chosen: Options) -> FastAPI:
    """The app, with its networks loaded."""
    app, networks = FastAPI(), Networks(chosen)
    loaded = {name: networks.load(name) for name in networks.names}

    @app.post("/predict")
    def predict(task: str, image: bytes = Body(media_type="image/jpeg")) -> dict[str, float]:
        return networks.answer(loaded[task], [networks.picture(image)])[0]

    @app.get("/ready")
    def ready() -> str:
        return "ready"

    return app


def main() -> None:
    """Serve."""
    import sys

    chosen = options()
    os.environ[ARGUMENTS] = "\n".join(sys.argv[1:])
    uvicorn.run(
        "fastapi_server:create_app",
        factory=True,
        host="127.0.0.1",
        port=chosen.port,
        workers=chosen.processes,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
