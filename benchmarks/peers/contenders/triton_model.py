"""What Triton's Python backend does with a request; it imports a copy of this file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from network import Networks, options

ARGUMENTS = "PEER_ARGUMENTS"


class TritonPythonModel:
    """All tasks in one instance; the class is named as Triton wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load them."""
        self.networks = Networks(options(os.environ[ARGUMENTS].split("\n")))
        self.loaded = {name: self.networks.load(name) for name in self.networks.names}

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer per request."""
        import triton_python_backend_utils as backend  # is there only within the backend

        answers: list[Any] = []
        for request in requests:
            task, image = (backend.get_input_tensor_by_name(request, key).as_numpy()[0] for key in ("task", "image"))
            found = self.networks.answer(self.loaded[task.decode()], [self.networks.picture(image)])[0]
            label, score = np.array([found["class"]], np.int64), np.array([found["score"]], np.float32)
            tensors = [backend.Tensor("class", label), backend.Tensor("score", score)]
            answers.append(backend.InferenceResponse(output_tensors=tensors))
        return answers
