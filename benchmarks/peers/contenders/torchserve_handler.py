"""What a worker of TorchServe does with a request."""

from __future__ import annotations

import os
from typing import Any

from network import Networks, options

ARGUMENTS = "PEER_ARGUMENTS"


class Classifiers:
    """All tasks in one worker."""

    def initialize(self, context: Any) -> None:
        """Load them."""
        self.networks = Networks(options(os.environ[ARGUMENTS].split("\n")))
        self.loaded = {name: self.networks.load(name) for name in self.networks.names}

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[dict[str, float]]:
        """As many requests as were batched, by default one: the picture is its body, a header says the task."""
        return [self.answer(context.get_request_header(i, "task"), row["body"]) for i, row in enumerate(requests)]

    def answer(self, task: str, image: bytearray) -> dict[str, float]:
        """To one request."""
        return self.networks.answer(self.loaded[task], [self.networks.picture(bytes(image))])[0]
