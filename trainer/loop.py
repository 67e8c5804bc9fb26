"""The one training loop, for all methods, on Lightning Fabric.

A phase: a new optimiser, a new guard over what is frozen, epochs with a validation each, then back to the best of them.
A method may leave phases out, or settle what they do by what earlier ones gave: that is all that a search is.
Checkpoints stand between two steps; a resumed run takes the very steps that the killed one would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from masks_store import TaskpackError, normalise

from .batches import batch_sizes, train_batches
from .checkpoint import Checkpoint, Position, load_optimizer, optimizer_tensors, random_state, set_random_state
from .data import Source, Split
from .draws import draw_key
from .freeze import Trainable
from .ground import Ground
from .imbalance import balanced_weights, training_loss
from .interrupt import Interrupted
from .measure import score
from .methods import Hits, Method
from .network import Network, memory_format
from .phase import BEGIN, Phase, learning_rate
from .plan import Plan, seed_of
from .progress import Reporter, Tick
from .ranks import fingerprint_of, follow_first, largest, require_equal, total
from .regulariser import NONE, Regulariser
from .results import Row
from .sparsify import Bench, Candidate
from .step import Gear, make_gear, train_step


class Diverged(TaskpackError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Keeper:
    """Where a run keeps its state, and hears that it should stop.

    Attributes:
        save: keeps a checkpoint in place of the last.
        results: keeps the rows so far.
        stop: whether to stop; asked after each step, and after each validation.
        interval: seconds between checkpoints within an epoch.
        rarity: a checkpoint is due no earlier than this many times what the last took: 20 is 5 % of the time at most.
    """

    save: Callable[[Checkpoint], None]
    results: Callable[[list[Row]], None]
    stop: Callable[[], bool] = lambda: False
    interval: float = 30.0
    rarity: float = 20.0


@dataclass(frozen=True)
class Trained:
    """What the loop leaves.

    Attributes:
        network: at the best of its last phase.
        trainable: what trained in that.
        rows: of all epochs.
        hits: of each phase that was run, at its best.
        scan: the thresholds that clnp tried.
    """

    network: Network
    trainable: Trainable
    rows: tuple[Row, ...]
    hits: Hits
    scan: tuple[Candidate, ...] = ()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all epochs, over all sittings."""
        return sum(row.cpu_seconds or 0.0 for row in self.rows)


class Loop:
    """One run through all phases of a plan.

    Args:
        method: says what trains, and what happens between phases.
        ground: what the task stands on.
        plan: the resolved settings.
        source: has the splits `train` and `val`.
        fabric: the device, the precision, and the processes that train together; all of them run the same loop.
        reporter: is told what happens.
        keeper: where checkpoints go.
        layout: the memory format of network and pictures; None: see `memory_format`.
        folds: sources of the phases that have a fold.
        regulariser: added to every step from outside; none of the methods here has one.
    """

    def __init__(
        self,
        method: Method,
        ground: Ground,
        plan: Plan,
        source: Source,
        fabric: Fabric,
        reporter: Reporter,
        keeper: Keeper,
        layout: torch.memory_format | None = None,
        folds: Sequence[Source] = (),
        regulariser: Regulariser = NONE,
    ) -> None:
        self.method, self.ground, self.plan, self.source = method, ground, plan, source
        self.fabric, self.reporter, self.keeper = fabric, reporter, keeper
        self.folds, self.regulariser = folds, regulariser
        network = method.start(ground, plan)
        if fabric.world_size > 1:
            network.synchronise()
        self.layout = layout or memory_format(network)
        self.network = network.to(fabric.device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.trainable: Trainable = {}
        self.best: dict[str, Tensor] = {}
        self.starts: dict[str, dict[str, Tensor]] = {}
        self.hits: dict[str, Tensor] = {}
        self.position = Position()
        self._keep_start(BEGIN, plan.phases)
        self._saved_at, self._save_took = time.monotonic(), 0.0
        self._cpu_since = time.process_time()

    def run(self, checkpoint: Checkpoint | None = None) -> Trained:
        """Train, from the start or from a checkpoint on.

        Raises:
            Interrupted: `keeper.stop` said so; a checkpoint was kept.
            Diverged: a loss was not finite.
            OutOfStep: the processes that train together do not hold the same.
        """
        if checkpoint:
            self.position = checkpoint.position
            self.trainable = checkpoint.trainable
            self.best = {name: tensor.to(self.fabric.device) for name, tensor in checkpoint.best.items()}
            self.starts = {name: dict(state) for name, state in checkpoint.starts.items()}
            self.hits = dict(checkpoint.hits)
            self.network.load_state_dict(dict(checkpoint.network))
        while self.position.phase < len(self.plan.phases):
            phase = self.method.settle(self.plan, self.plan.phases[self.position.phase], self.hits)
            if phase is not None:
                self._phase(phase, checkpoint)
            checkpoint = None
            done = self.position
            self.position = Position(phase=done.phase + 1, rows=done.rows, scan=done.scan)
        rows, scan = tuple(self.position.rows), tuple(self.position.scan)
        return Trained(self.network, self.trainable, rows, self.hits, scan)

    def _phase(self, phase: Phase, checkpoint: Checkpoint | None) -> None:
        position, source = self.position, self._source(phase)
        self._cpu_since = time.process_time() - position.cpu_seconds
        sizes = batch_sizes(len(source.splits["train"]), self.plan.batch_size)
        self.reporter.begin(phase, position.phase + 1, len(self.plan.phases), len(sizes))
        self.method.set_up(phase, self.network)
        if checkpoint is None:
            torch.manual_seed(seed_of(self.plan, f"phase {phase.draws or phase.name}"))
            if phase.start is not None:
                self.network.load_state_dict(self.starts[phase.start])
            before = self.trainable if position.phase else None
            position.scan += self.method.before_phase(self._bench(source), self.plan, phase, self.network)
            entered = self.method.enter(self.ground, self.plan, phase, self.network, before)
            self.trainable = follow_first(self.fabric, self.network, entered)
        gear = make_gear(self.fabric, self.network, phase, self.trainable)
        if checkpoint:
            load_optimizer(self.network, gear.optimizer, checkpoint.optimizer)
            self.fabric.strategy.precision.load_state_dict(dict(checkpoint.scaler))
            set_random_state(self.fabric.device, checkpoint.random)
        elif phase.start_counts:
            self._judge(gear, phase, epoch=0, lr=0.0, started=time.monotonic(), rate=0.0)
        while position.epoch < phase.epochs and not (phase.patience is not None and position.stale > phase.patience):
            self._epoch(phase, gear, sizes)
        if phase.epochs == 0 and self._stop():
            raise Interrupted  # the checkpoint of the phase before stands: what this one measured is soon done again
        self.network.load_state_dict(self.best, strict=False)
        if self.fabric.world_size > 1:
            require_equal(self.fabric, "network", fingerprint_of(self.network, self.trainable))
        self._keep_start(phase.name, self.plan.phases[position.phase + 1 :])

    def _keep_start(self, name: str, later: Sequence[Phase]) -> None:
        """Keep the network as it is where a later phase starts from it, and drop what none starts from any more."""
        wanted = {phase.start for phase in later}
        self.starts = {kept: state for kept, state in self.starts.items() if kept in wanted}
        if name in wanted:
            self.starts[name] = {key: tensor.detach().clone() for key, tensor in self.network.state_dict().items()}

    def _epoch(self, phase: Phase, gear: Gear, sizes: list[int]) -> None:
        position, plan, preprocess = self.position, self.plan, self.ground.backbone.manifest.preprocess
        train = self._source(phase).splits["train"]
        weights = self._class_weights(train)
        rank, world, batches = self.fabric.global_rank, self.fabric.world_size, len(sizes)
        started = time.monotonic() - position.seconds
        sums = torch.tensor([position.loss, position.correct], dtype=torch.float64, device=self.fabric.device)
        gear.model.train()
        pictures = train_batches(
            train,
            preprocess,
            batch_size=plan.batch_size,
            seed=plan.seed,
            task=plan.task,
            phase=phase.draws or phase.name,
            epoch=position.epoch,
            start=position.batch,
            flip=plan.flip,
            augment=plan.augment,
            device=self.fabric.device,
            threads=plan.threads - 1,
            rank=rank,
            world=world,
        )
        for images, labels in pictures:
            lr = learning_rate(phase, position.epoch, position.batch, batches)
            if world > 1:  # dropout differs between processes, and a resume has none of their generators to restore
                torch.manual_seed(self._step_seed(phase))
            inputs = normalise(images, preprocess).contiguous(memory_format=self.layout)
            logits = gear.model(inputs)
            loss = training_loss(logits, labels, weights)
            # The processes' gradients are averaged: weighted so, every picture of the whole batch counts alike.
            weighted = loss * (len(labels) * world / sizes[position.batch]) if world > 1 else loss
            train_step(self.fabric, gear, phase, lr, self.regulariser.loss(weighted, inputs), self.regulariser)
            right = (logits.argmax(1) == labels).sum()
            sums += total(self.fabric, torch.stack([loss.detach().double() * len(labels), right]))
            position.seen += sizes[position.batch]
            position.batch += 1
            position.seconds = time.monotonic() - started
            if self.reporter.wants_tick():
                self.reporter.tick(self._tick(sums, batches))
            stop = self._stop()
            if stop or self._due(self.keeper.interval):
                self._note(sums)
                self._save(gear.optimizer)
            if stop:
                raise Interrupted
        self._note(sums)
        lr = learning_rate(phase, position.epoch, batches - 1, batches)
        self._judge(gear, phase, position.epoch + 1, lr, started, rate=position.seen / position.seconds)
        position.epoch, position.batch = position.epoch + 1, 0
        position.seconds = position.loss = position.correct = 0.0
        position.seen = 0
        stop = self._stop()  # asked for while it was validated
        if stop or self._due(0.0) or position.epoch == phase.epochs:
            self._save(gear.optimizer)
        if stop:
            raise Interrupted

    def _judge(self, gear: Gear, phase: Phase, epoch: int, lr: float, started: float, rate: float) -> None:
        """Validate, and keep what trains if it is the phase's best: higher accuracy or, at the same, lower loss.

        Epoch 0 is what the phase starts from.
        """
        position = self.position
        preprocess = self.ground.backbone.manifest.preprocess
        split, threads = self._source(phase).splits["val"], self.plan.threads - 1
        val = score(gear.model, split, preprocess, self.fabric.device, threads, fabric=self.fabric)
        top1, loss = val.top1, val.loss
        better = top1 > position.best_top1
        best = better or (top1 == position.best_top1 and loss < position.best_loss)
        position.stale = 0 if better else position.stale + 1
        if best:
            position.best_top1, position.best_loss, position.best_epoch = top1, loss, epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self._changing().items()}
            self.hits[phase.name] = val.hits
        row = Row(
            phase=phase.name,
            epoch=epoch,
            lr=lr,
            train_loss=position.loss / position.seen if epoch else None,
            train_top1=position.correct / position.seen if epoch else None,
            val_loss=loss,
            val_top1=top1,
            best=best,
            seconds=time.monotonic() - started,
            images_per_second=rate,
            cpu_seconds=time.process_time() - self._cpu_since,
        )
        self._cpu_since = time.process_time()
        position.rows.append(row)
        self.reporter.epoch(row)
        self.keeper.results(position.rows)
        if not all(math.isfinite(value) for value in (loss, row.train_loss or 0.0)):
            raise Diverged(
                f"training diverged: the loss is no longer a number in epoch {epoch} of {phase.name!r}; "
                f"{self.method.slower(self.plan, phase)}"
            )

    def _changing(self) -> dict[str, Tensor]:
        """What training changes: the parameters that train, and every BatchNorm's statistics where norms do."""
        state = self.network.state_dict()
        buffers = {name for name, _ in self.network.named_buffers()} if self.network.trains_norm else set[str]()
        return {name: tensor for name, tensor in state.items() if name in self.trainable or name in buffers}

    def _source(self, phase: Phase) -> Source:
        return self.source if phase.fold is None else self.folds[phase.fold - 1]

    def _class_weights(self, train: Split) -> Tensor | None:
        if self.plan.class_weight == "none":
            return None
        weights = balanced_weights(train.labels, len(self.plan.classes))
        return None if weights is None else weights.to(self.fabric.device)

    def _bench(self, source: Source) -> Bench:
        preprocess, threads = self.ground.backbone.manifest.preprocess, self.plan.threads - 1
        return Bench(source, preprocess, self.fabric.device, threads, self.reporter.say, self._stop, self.fabric)

    def _stop(self) -> bool:
        """Whether any process was asked to stop: all stop after the same step."""
        return bool(largest(self.fabric, int(self.keeper.stop())))

    def _step_seed(self, phase: Phase) -> int:
        purpose = f"step {self.position.batch} rank {self.fabric.global_rank}"
        return draw_key(self.plan.seed, self.plan.task, phase.name, self.position.epoch, purpose) >> 1

    # ---------------------------------------------------------------- keeping state
    def _note(self, sums: Tensor) -> None:
        self.position.loss, self.position.correct = sums.tolist()

    def _tick(self, sums: Tensor, batches: int) -> Tick:
        position = self.position
        loss, correct = sums.tolist()
        return Tick(
            epoch=position.epoch + 1,
            batch=position.batch,
            batches=batches,
            loss=loss / position.seen,
            top1=correct / position.seen,
            images_per_second=position.seen / max(position.seconds, 1e-9),
        )

    def _due(self, interval: float) -> bool:
        return time.monotonic() - self._saved_at >= max(interval, self.keeper.rarity * self._save_took)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        started = time.monotonic()
        self.position.cpu_seconds = time.process_time() - self._cpu_since
        self.keeper.save(
            Checkpoint(
                position=self.position,
                network=self.network.state_dict(),
                trainable=self.trainable,
                best=self.best,
                starts=self.starts,
                hits=self.hits,
                optimizer=optimizer_tensors(self.network, optimizer),
                scaler=self.fabric.strategy.precision.state_dict(),
                random=random_state(self.fabric.device),
            )
        )
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - started
