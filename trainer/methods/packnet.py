"""PackNet (arXiv 1711.05769): take free weights, train, give the smallest back, retrain the rest. METHODS §1."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch

from masks_store import (
    InvalidInput,
    OutOfCapacity,
    bias_params,
    build,
    encode_claim,
    encode_selection,
    norm_modules,
    packable,
    surviving_filters,
    survivors,
)

from ..config import Settings
from ..folds import FOLDS
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import BEGIN, Optimizer, Phase, Schedule
from ..plan import Choices, Plan
from ..prune import CANDIDATES, DEFAULT_MARGIN, Equal, Trial, chosen_share, judge_trial, parse_prune
from ..selecting import add_masks, real_masks, shown
from .method import (
    Hits,
    Method,
    Payload,
    bias_names,
    check_mask_optimizer,
    mask_trainables,
    norm_names,
    norm_tensors,
    packable_names,
    stored,
)

TRAIN, TRIAL, RETRAIN = "train", "trial", "retrain"
EPOCHS = 20
PICK_FACTOR, PAPER_PICK_FACTOR = 0.6, 0.1


class PackNet(Method):
    """Phases B (train what is free), C (prune it) and D (retrain what survives); A where the base is empty."""

    takes_weights = True

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """Recipe `paper`: SGD 0.9 without decay, 20 epochs at 1e-3 and from the middle on 1e-4, 10 of retraining at
        1e-4, the norm shared and frozen. Recipe `best`, the default, departs from it: the learning rate falls along a
        cosine and is chosen by whether the base is pretrained, because 1e-3 never gets a random start anywhere in 20
        epochs; retraining starts at a tenth of it; the gradient is clipped.

        With `--pick` (ours, after CPG and WSN): Adam in both recipes, and Piggyback's real-valued mask over what the
        lineage owns, learned in phase B together with the claim, at 0.6 of its learning rate (by default 3e-4, as our
        Piggyback's; `paper`: a tenth, by default the 1e-4 that Piggyback published), and fixed in C and D. A founding
        claim has nothing to pick from and is trained as without it.

        Departures of both from the authors' code: pictures go through the store's one preprocess and are cropped at
        random (`augment.py`); they are mirrored only on request; phases end at their best validation accuracy, where
        theirs take the test set's.

        Raises:
            OutOfCapacity: nothing is free.
            InvalidInput: a norm or layers that the backbone has not, or an optimiser that moves no mask.
        """
        taken = taken_weights(ground, settings.train_layers)
        takes = sum(int(mask.sum()) for mask in taken.values())
        if settings.train_layers != "head":
            check_capacity(ground, takes, settings.train_layers)
        picks = settings.pick and not ground.empty
        if picks:
            check_mask_optimizer(settings, "--pick")
        paper = settings.recipe == "paper"
        optimizer: Optimizer = settings.optimizer or ("adam" if picks else "sgd")  # pyright: ignore[reportAssignmentType]
        lr = settings.lr or (1e-3 if paper else default_lr(optimizer, scratch=ground.empty))
        epochs = settings.epochs or EPOCHS
        rule, turn = parse_prune(settings.prune) if takes else 0.0, None
        if isinstance(rule, Equal):
            turn = (rule.turn(ground.holders), rule.tasks)
            rule = rule.share(turn[0])
        falls: tuple[Schedule, Schedule] = ("half", "constant") if paper else ("cosine", "cosine")
        decay, clip = settings.weight_decay or 0.0, None if paper else 5.0
        picking = (PAPER_PICK_FACTOR if paper else PICK_FACTOR) if picks else 1.0
        train = Phase(TRAIN, epochs, lr, falls[0], optimizer, weight_decay=decay, clip=clip, mask_factor=picking)
        again = dataclasses.replace(
            train,
            name=RETRAIN,
            epochs=math.ceil(epochs / 2),
            lr=settings.retrain_lr or lr / 10,
            schedule=falls[1],
            start_counts=True,
        )
        return Choices(
            phases=(train, *_after(again, rule)),
            batch_size=settings.batch_size or 32,
            own_norm=_own_norm(ground, "shared" if paper and settings.norm == "auto" else settings.norm),
            prune=rule,
            margin=(DEFAULT_MARGIN if settings.margin is None else settings.margin) if rule == "auto" else None,
            turn=turn,
            takes=takes,
        )

    def start(self, ground: Ground, plan: Plan) -> Network:
        """The base's network; free weights are exactly 0, or a Kaiming start for a founding claim."""
        network = ground.network(len(plan.classes), trains_norm=plan.own_norm or plan.founding, anew=True)
        if plan.founding:
            manifest = ground.backbone.manifest
            _take_random_start(network, build(manifest.arch, manifest.arch_args), ground)
        elif plan.own_norm and ground.backbone.manifest.keep > 0.0:
            _take_norm(network, ground)
        if plan.pick and not plan.founding:
            add_masks(network.body)
        return network

    def slower(self, plan: Plan, phase: Phase) -> str:
        """Retraining, and its trials, have a flag of their own."""
        return super().slower(plan, phase) if phase.prune is None else f"try --retrain-lr {phase.lr / 3:.2g}"

    def settle(self, plan: Plan, phase: Phase, hits: Hits) -> Phase | None:
        """Under `--prune auto`: no further share after the first that is accepted, and D with the one that it was."""
        if plan.prune != "auto" or (phase.draws != TRIAL and phase.name != RETRAIN):
            return phase
        tried = trials(plan, hits, before=phase)
        if phase.draws == TRIAL:
            return None if any(trial.accepted for trial in tried) else phase
        return dataclasses.replace(phase, prune=chosen_share(tried))

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """B: all that it takes, and the picks. D and trials of it: first C, from B's best, then what survived."""
        claim = {f"body.{name}": mask for name, mask in taken_weights(ground, plan.train_layers).items()}
        picks: Trainable = {}
        if phase.prune is not None:
            claim = _prune(network, claim, phase.prune, plan.prune_by)
        elif real_masks(network.body):
            picks = mask_trainables(ground)
        rest = ["head.weight", "head.bias"]
        rest += norm_names(network) if network.trains_norm else []
        rest += bias_names(network) if plan.founding else []
        return {**claim, **picks, **dict.fromkeys(rest)}

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """The claim, its values, the picks, and norm and biases where they are the task's own."""
        claim = {name.removeprefix("body."): mask for name, mask in _claim_of(network, trained).items()}
        claim = {name: mask.cpu().contiguous() for name, mask in claim.items() if bool(mask.any())}
        if not claim:  # --train-layers head: a packnet artifact has at least one mask
            claim = {name: torch.zeros_like(mask) for name, mask in list(ground.free.items())[:1]}
        tensors, masks = encode_claim(claim, ground.backbone, ground.claims)
        for name, mask in claim.items():
            weight = network.body.get_parameter(name).detach().cpu().contiguous()
            tensors[f"value/{name}"] = stored(weight[mask], plan)  # [claimed], row-major
        picks, infos = encode_selection("pick", shown(network.body), ground.backbone, ground.claims)
        tensors, masks = {**tensors, **picks}, {**masks, **infos}
        if network.trains_norm:
            tensors |= norm_tensors(network)
        if plan.founding:
            tensors |= {f"bias/{n}": bias.detach().cpu() for n, bias in bias_params(network.body).items()}
        return Payload(tensors, masks)


def by_folds(choices: Choices) -> Choices:
    """Choices of `--prune auto`, with each share tried in every fold: for a validation split that is too small.

    A fold's main phase starts like the run's own and sees the other two folds; the trials of a share start at the best
    of it, each in its fold. The share is judged by the held-out pictures of all folds together.
    """
    train, *tried, retrain = choices.phases
    numbers = range(1, FOLDS + 1)
    phases = [dataclasses.replace(train, name=_of(n, TRAIN), start=BEGIN, draws=TRAIN, fold=n) for n in numbers]
    phases += [
        dataclasses.replace(trial, name=_of(n, trial.name), start=_of(n, TRAIN), fold=n)
        for trial in tried
        for n in numbers
    ]
    return dataclasses.replace(choices, phases=(train, *phases, retrain))


def _of(fold: int, phase: str) -> str:
    return f"fold {fold} {phase}"


def trials(plan: Plan, hits: Hits, before: Phase | None = None) -> list[Trial]:
    """What the trials of `--prune auto` gave, in their order; none for another share.

    A share that is tried in folds is one trial, and counts once it has been tried in all of them.

    Args:
        plan: the run.
        hits: of the phases that have been run.
        before: only trials before this phase.
    """
    if plan.margin is None:
        return []
    run = plan.phases if before is None else plan.phases[: plan.phases.index(before)]
    parts: dict[float, list[Phase]] = {}
    for phase in plan.phases:
        if phase.draws == TRIAL and phase.prune is not None:
            parts.setdefault(phase.prune, []).append(phase)
    return [
        judge_trial(
            share,
            torch.cat([hits[phase.start or TRAIN] for phase in phases]),
            torch.cat([hits[phase.name] for phase in phases]),
            plan.margin,
        )
        for share, phases in parts.items()
        if all(phase in run and phase.name in hits for phase in phases)
    ]


def _after(retrain: Phase, prune: float | Literal["auto"]) -> tuple[Phase, ...]:
    """Phase D, for `auto` behind a third of it for each share to try; nothing where nothing is pruned.

    A trial of 0 needs no run: it begins as what it is compared with, which is a candidate for its best.
    """
    if prune == 0.0:
        return ()
    if prune != "auto":
        return (dataclasses.replace(retrain, prune=prune),)
    third = dataclasses.replace(retrain, epochs=math.ceil(retrain.epochs / 3), start=TRAIN, draws=TRIAL)
    tried = (dataclasses.replace(third, name=f"{TRIAL} {share:g}", prune=share) for share in CANDIDATES)
    return (*tried, dataclasses.replace(retrain, start=TRAIN))


def default_lr(optimizer: Optimizer, *, scratch: bool) -> float:
    """The learning rate that works without a flag: SGD 0.9 at batch 32, or Adam."""
    if optimizer == "sgd":
        return 0.05 if scratch else 0.01
    return 2e-3 if scratch else 5e-4


def taken_weights(ground: Ground, layers: str) -> dict[str, torch.Tensor]:
    """The free weights that a task trains: parameter name -> bool.

    Args:
        ground: says what is free.
        layers: `all`; `last:N`: of the last N convolutions and linear layers, in the order in which the network
            defines them; `head`: none.

    Raises:
        InvalidInput: there are fewer layers than N, or others would stay without any weights.
    """
    if layers == "all":
        return dict(ground.free)
    if ground.empty:
        raise InvalidInput(
            f"--train-layers {layers} needs a base: this store keeps nothing of its backbone (--keep 0), so the other "
            "layers would stay empty; name a task with --on TASK, or take all layers"
        )
    count = int(layers.removeprefix("last:")) if layers != "head" else 0
    if count > len(ground.free):
        raise InvalidInput(
            f"--train-layers {layers}: {ground.backbone.manifest.arch} has {len(ground.free)} layers without its head"
        )
    names = list(packable(ground.backbone.shape_only()))
    return {name: ground.free[name] for name in names[len(names) - count :]}


def check_capacity(ground: Ground, takes: int, layers: str) -> None:
    """Refuse a store in which nothing is free that could be taken.

    Raises:
        OutOfCapacity: says how to get free weights.
    """
    if takes:
        return
    if any(bool(mask.any()) for mask in ground.free.values()):
        raise OutOfCapacity(f"packnet has no free weights in {layers}; take more layers with --train-layers")
    if ground.backbone.manifest.keep >= 1.0:
        raise OutOfCapacity(
            "packnet has no free weights here: the store keeps its whole backbone (--keep 1.0). Make one that frees "
            "some with `taskpack init STORE --keep 0.5 …`, or use --method clr, which takes none"
        )
    raise OutOfCapacity(
        "packnet has no free weights here: tasks own them all. Delete a version that is no longer needed "
        "(`taskpack rm`), make a new store, or use --method clr, which takes none"
    )


def _own_norm(ground: Ground, norm: str) -> bool:
    """`auto`: its own where a pretrained backbone was pruned without its data, else shared (METHODS §1, Norm)."""
    manifest = ground.backbone.manifest
    if not norm_modules(ground.backbone.shape_only()):
        if norm == "own":
            raise InvalidInput(f"--norm own: {manifest.arch} has no BatchNorm; leave the flag out")
        return False
    if norm == "auto":
        return 0.0 < manifest.keep < 1.0 and not manifest.norm_adapted
    return norm == "own"


@torch.no_grad()
def _take_random_start(network: Network, random: torch.nn.Module, ground: Ground) -> None:
    """Free weights, norm and biases from a freshly made body; what others own stays 0 for this task."""
    source = random.state_dict()
    for name in packable_names(network):
        network.body.get_parameter(name).copy_(torch.where(ground.free[name], source[name], 0.0))
    for name in bias_names(network) + norm_names(network):
        network.get_parameter(name).copy_(source[name.removeprefix("body.")])


@torch.no_grad()
def _take_norm(network: Network, ground: Ground) -> None:
    """A norm of its own starts from the backbone's, not from its parent's (METHODS §1, Norm).

    In a store that keeps nothing the backbone's is a random start: there it starts from the parent's.
    """
    state = network.body.state_dict()
    for name in norm_modules(network.body):
        for field in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{field}"].copy_(ground.backbone.tensors[f"{name}.{field}"])


def _claim_of(network: Network, trained: Trainable) -> dict[str, torch.Tensor]:
    """The shared weights among what trained: the network's parameter name -> bool."""
    names = [f"body.{name}" for name in packable(network.body)]
    return {name: mask for name in names if (mask := trained.get(name)) is not None}


@torch.no_grad()
def _prune(network: Network, claim: dict[str, torch.Tensor], share: float, unit: str) -> dict[str, torch.Tensor]:
    """Phase C: free the smallest of every layer and set them to exactly +0.0; returns what is left of the claim."""
    choose = surviving_filters if unit == "filters" else survivors
    left: dict[str, torch.Tensor] = {}
    for name, owned in claim.items():
        weight = network.get_parameter(name)
        owned = owned.to(weight.device)
        left[name] = choose(weight, owned, share)
        weight.copy_(torch.where(owned & ~left[name], 0.0, weight))
    return left
