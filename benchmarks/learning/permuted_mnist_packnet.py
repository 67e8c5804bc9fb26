"""PackNet on permuted MNIST by the protocol of WSN (Kang et al., ICML 2022).

    TASKPACK_DATA=DIR python -m benchmarks.learning.permuted_mnist_packnet --seeds 0

time        see results/permuted_mnist_packnet.json, `cpu_seconds`; one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    mean test accuracy after ten tasks of at least 96.07 %; published by WSN for PackNet: 96.37 %

MLP of two hidden layers of 100 over 784 pixels, a head per task, hidden layers packed with `--prune equal:10`, batch
10, Adam 1e-3, 5 epochs of which 2 after pruning, 10 % of the training pictures for validation, the published test set,
no augmentation. Ours, not WSN's: the learning rate falls along a cosine in either phase, the gradient is clipped at 5,
phases go back to their best validation accuracy. The last of the ten tasks keeps all that is left, so it has no
retraining and 3 epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from trainer import Settings

from .ledger import workplace
from .options import cut_of, mnist_of, parser_of
from .packing import Found, pack
from .record import environment, mean_sd, table, write

ARCH, PUBLISHED, TARGET = "mlp-100-100", 0.9637, 0.9607
MAIN_EPOCHS = 3
SETTINGS = Settings(
    method="packnet",
    optimizer="adam",
    lr=1e-3,
    retrain_lr=1e-3,
    batch_size=10,
    augment="none",
    threads=1,
    device="cpu",
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = parser_of(__doc__, epochs=MAIN_EPOCHS)
    parser.add_argument("--arch", default=ARCH)
    parser.add_argument("--batch-size", type=int, default=SETTINGS.batch_size)
    parser.add_argument("--retrain-lr", type=float, default=SETTINGS.retrain_lr)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cut = cut_of(arguments)
    result: dict[str, Any] = {
        "experiment": "permuted MNIST, PackNet",
        "published": {"WSN, PackNet": PUBLISHED},
        "target": TARGET,
        **environment(),
        "arch": arguments.arch,
        "cut": dataclasses.asdict(cut),
        "seeds": [],
    }
    for seed in arguments.seeds:
        settings = dataclasses.replace(
            SETTINGS,
            seed=seed,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            retrain_lr=arguments.retrain_lr,
            prune=f"equal:{cut.tasks}",
        )
        result["settings"] = dataclasses.asdict(dataclasses.replace(settings, seed=0))
        run: dict[str, Any] = {"seed": seed, "tasks": []}
        result["seeds"].append(run)

        def done(packed: Found, _beside: Found | None, run: dict[str, Any] = run) -> None:
            run["tasks"].append(packed)
            write(arguments.out / "permuted_mnist_packnet.json", result)
            print(f"seed {run['seed']} {packed['task']}: test {packed['test_top1']}", flush=True)

        with workplace(arguments.work, f"packnet-{seed}") as folder:
            all_ = pack(mnist_of(arguments), arguments.arch, settings, seed, cut, folder, done=done)
        run |= {"after": list(all_.after), "mean": sum(all_.after) / len(all_.after), "size": all_.size}
        run["cpu_seconds"] = round(sum(task["cpu_seconds"] for task in run["tasks"]), 3)
    write(arguments.out / "permuted_mnist_packnet.json", result)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """The result as a table."""
    means = [run["mean"] for run in result["seeds"]]
    first = [run["after"][0] for run in result["seeds"]]
    rows = [
        ["PackNet, here", mean_sd(means), mean_sd(first), str(len(means))],
        ["PackNet, published by WSN", mean_sd([PUBLISHED]), "", ""],
        ["target", mean_sd([TARGET]), "", ""],
    ]
    return table(["", "mean test accuracy after all tasks, %", "first task, %", "seeds"], rows)


if __name__ == "__main__":
    main()
