"""Triton Inference Server from PyTriton's wheel: a model in its Python backend, a process for each instance."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytriton
from network import options
from triton_model import ARGUMENTS

MODEL = Path(__file__).with_name("triton_model.py")
SERVER = Path(pytriton.__file__).parent / "tritonserver"
LIBRARIES = Path(pytriton.__file__).parents[1] / "nvidia_pytriton.libs"
CONFIG = """backend: "python"
max_batch_size: 0
input [
  { name: "task", data_type: TYPE_STRING, dims: [1] },
  { name: "image", data_type: TYPE_STRING, dims: [1] }
]
output [
  { name: "class", data_type: TYPE_INT64, dims: [1] },
  { name: "score", data_type: TYPE_FP32, dims: [1] }
]
"""


def main() -> None:
    """Become Triton, with its files in the working directory."""
    chosen, folder = options(), Path.cwd()
    model = folder / "models" / "tasks"
    (model / "1").mkdir(parents=True)
    shutil.copy(MODEL, model / "1" / "model.py")
    shutil.copy(MODEL.with_name("network.py"), model / "1")  # the backend heeds no PYTHONPATH
    (model / "config.pbtxt").write_text(f"{CONFIG}instance_group [{{ count: {chosen.processes}, kind: KIND_CPU }}]\n")
    shutil.copytree(SERVER / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends/python")
    os.environ |= {
        ARGUMENTS: "\n".join(sys.argv[1:]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # whose packages it sees
        # The wheel's libraries; and the backend's processes embed an interpreter: this one, not the system's.
        "LD_LIBRARY_PATH": os.pathsep.join([str(LIBRARIES), sysconfig.get_config_var("LIBDIR")]),
    }
    flags = ["--model-repository=models", "--backend-directory=backends", "--log-info=false", "--log-warning=false"]
    flags += ["--http-address=127.0.0.1", f"--http-port={chosen.port}", "--allow-grpc=false", "--allow-metrics=false"]
    os.execv(SERVER / "bin" / "tritonserver", ["tritonserver", *flags])


if __name__ == "__main__":
    main()
