"""Ray Serve: replicas that keep as many tasks' networks as there are, multiplexed by the header that Ray names."""

from __future__ import annotations

import signal

import ray
from fastapi import Request
from network import Networks, Options, options
from ray import serve
from torch import nn


def main() -> None:
    """Serve until SIGTERM."""
    chosen = options()
    ray.init(num_cpus=max(2, chosen.processes), include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    count = len(Networks(chosen).names)
    deployment = serve.deployment(
        classifiers(count), num_replicas=chosen.processes, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32
    )
    serve.run(deployment.bind(chosen))
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    signal.sigwait(stopping)
    ray.shutdown()


def classifiers(count: int) -> type:
    """The deployment's class for a number of tasks: how many models a replica keeps is said in its decorator."""

    class Classifiers:
        def __init__(self, chosen: Options) -> None:
            self.networks = Networks(chosen)

        @serve.multiplexed(max_num_models_per_replica=count)
        async def model(self, name: str) -> nn.Module:
            return self.networks.load(name)

        async def __call__(self, request: Request) -> dict[str, float]:
            model = await self.model(serve.get_multiplexed_model_id())
            return self.networks.answer(model, [self.networks.picture(await request.body())])[0]

    return Classifiers


if __name__ == "__main__":
    main()
