"""TorchServe: its Java frontend, and worker processes with every task's network, which run `torchserve_handler.py`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path

from network import options
from torchserve_handler import ARGUMENTS

HANDLER = Path(__file__).with_name("torchserve_handler.py")
QUIET = """<Configuration><Loggers><Root level="error"/></Loggers></Configuration>"""


def main() -> None:
    """Become TorchServe, with its files in the working directory."""
    chosen, folder = options(), Path.cwd()
    archive(folder / "archives" / "tasks")
    (folder / "log4j2.xml").write_text(QUIET)
    (folder / "config.properties").write_text(settings(chosen.port, chosen.processes))
    os.environ |= {
        ARGUMENTS: "\n".join(sys.argv[1:]),
        "PYTHONPATH": os.pathsep.join([str(HANDLER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TMPDIR": str(folder),  # where it notes that it runs
        "TEMP": str(folder),  # where it has the workers' sockets
    }
    flags = ["--start", "--foreground", "--ncs", "--model-store", "archives", "--models", "all"]
    flags += ["--ts-config", "config.properties", "--log-config", "log4j2.xml"]
    os.execv(sys.executable, [sys.executable, "-m", "ts.model_server", *flags])


def archive(folder: Path) -> None:
    """A model as TorchServe takes it, not zipped; its name is its folder's."""
    (folder / "MAR-INF").mkdir(parents=True)
    shutil.copy(HANDLER, folder)
    model = {"modelName": folder.name, "handler": HANDLER.name, "modelVersion": "1.0"}
    told = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(told))


def settings(port: int, workers: int) -> str:
    """Its `config.properties`: one address on this machine alone, neither tokens nor metrics."""
    address = f"http://127.0.0.1:{port}"
    told = {
        "inference_address": address,
        "management_address": address,
        "metrics_address": address,
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": free_port(),
        "grpc_management_port": free_port(),
        "default_workers_per_model": workers,
        "disable_token_authorization": "true",
        "enable_metrics_api": "false",
        "disable_system_metrics": "true",
    }
    return "".join(f"{key}={value}\n" for key, value in told.items())


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


if __name__ == "__main__":
    main()
