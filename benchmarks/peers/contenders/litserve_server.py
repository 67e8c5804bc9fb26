"""LitServe: each worker process loads every task's network; with `--batch` it stacks waiting requests, task by task.

No postponed annotations: LitServe reads them as objects.
"""

import base64
from typing import Any

import litserve
from network import Networks, Options, options
from torch import Tensor

WAIT_S = 0.005  # for a batch to fill

Asked = tuple[str, Tensor]
"""Task, and the picture [3, size, size]."""


class Classifiers(litserve.LitAPI):
    """All tasks in one worker."""

    def __init__(self, chosen: Options) -> None:
        super().__init__(max_batch_size=chosen.batch, batch_timeout=WAIT_S)
        self.chosen = chosen

    def setup(self, device: str) -> None:
        """Load them."""
        self.networks = Networks(self.chosen)
        self.loaded = {name: self.networks.load(name) for name in self.networks.names}

    def decode_request(self, request: dict[str, str]) -> Asked:
        """JSON with base64: LitServe's queue to its workers takes no uploaded files."""
        return request["task"], self.networks.picture(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Asked]) -> list[Asked]:
        """Pictures of several networks make no one tensor: a list."""
        return inputs

    def predict(self, asked: Asked | list[Asked]) -> Any:
        """One request, or as many as were batched."""
        if isinstance(asked, tuple):
            task, picture = asked
            return self.networks.answer(self.loaded[task], [picture])[0]
        answers: list[dict[str, float]] = [{}] * len(asked)
        for task in {task for task, _ in asked}:
            rows = [i for i, (of, _) in enumerate(asked) if of == task]
            found = self.networks.answer(self.loaded[task], [asked[i][1] for i in rows])
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
        return answers

    def unbatch(self, output: list[dict[str, float]]) -> list[dict[str, float]]:
        """One answer per request."""
        return output

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        """As it is."""
        return output


def main() -> None:
    """Serve."""
    chosen = options()
    server = litserve.LitServer(
        Classifiers(chosen), accelerator="cpu", workers_per_device=chosen.processes, timeout=False
    )
    server.run(host="127.0.0.1", port=chosen.port, generate_client_file=False, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
