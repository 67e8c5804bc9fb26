"""CLNP (arXiv 1903.04476): train free units under L1, keep the active ones, freeze what they own. METHODS §3."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor, nn

from masks_store import (
    OutOfCapacity,
    TaskUnits,
    UnitGraph,
    Units,
    between,
    encode_units,
    norm_modules,
    shared_weights,
    ungated_state,
    unit_blocks,
    units_of,
)

from ..config import Settings
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import Optimizer, Phase
from ..plan import Choices, Plan
from ..sparsify import Bench, Candidate, sparsify
from ..unit_network import UnitNetwork
from .method import Method, Payload, stored

TRAIN, SPARSIFY, FINETUNE = "train", "sparsify", "finetune"
EPOCHS, MARGIN = 20, 0.5
L1_LINEAR, L1 = 1e-5, 1e-4
LR = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}


@final
class CLNP(Method):
    """CLNP with the task given, and its fine-tuning variant.

    Weights from A (units active for any task of the lineage, and the picture) to A are frozen, from the rest I to A 0
    for ever, the others free. The paper's L1, learning rate and thresholds could not be recovered: Adam with a cosine,
    L1 1e-5 on networks of linear layers and 1e-4 on others, gradients clipped at 5. Ours, where a norm follows: L1 is
    on scale and shift of the free channels, since no weight's size can silence a channel behind a norm (METHODS §3
    (e)), and after gating their statistics are the mean over batches of at most 2,048 pictures (`sparsify.estimate`).

    Multi-head and single-head (METHODS §3: one shared layer, a row per class, old rows frozen and 0 from I) are one
    thing here, so there is no option. A row reads and moves nothing of another row: the shared layer is the tasks'
    heads one below the other, and cutting it into the artifacts' `head.*` changes no logit. What is left to choose is
    the loss. Ours is over the task's own rows, by which it is measured. Over all rows it would add
    log(1 + sum exp(old) / sum exp(own)), with old logits that are constants of each picture: it would push own logits
    up against tasks that are never asked at the same time. The paper's own words on its single head could not be
    read; METHODS §3 is what this follows. A layer whose rows tasks share, each reading only the last hidden units that
    it added itself, would be another method.
    """

    takes_weights = True

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """One phase under L1, then the scan for the threshold, and with `--finetune` a phase for the new units.

        Raises:
            OutOfCapacity: no unit is free, or a layer has none that this task could see.
        """
        graph = ground.backbone.units
        lineage, free = lineage_units(graph, ground), free_units(graph, ground)
        _check_capacity(lineage, free)
        optimizer = cast(Optimizer, settings.optimizer or "adam")
        lr, epochs = settings.lr or LR[optimizer], settings.epochs or EPOCHS
        linear = all(weight.dim() == 2 for weight in ground.free.values())
        lasso = settings.l1 if settings.l1 is not None else (L1_LINEAR if linear else L1)
        decay = settings.weight_decay or 0.0
        spared = tuple(f"body.{layer}.weight" for layer, part in graph.layers.items() if part.norm)
        train = Phase(
            TRAIN, epochs, lr, "cosine", optimizer, weight_decay=decay, clip=5.0, lasso=lasso, lasso_spares=spared
        )
        after = (FINETUNE, max(1, epochs // 2)) if settings.finetune else (SPARSIFY, 0)
        again = Phase(*after, lr / 10, "cosine", optimizer, weight_decay=decay, clip=5.0, start_counts=True)
        return Choices(
            phases=(train, again),
            batch_size=settings.batch_size or 32,
            own_norm=bool(norm_modules(ground.backbone.shape_only())),
            margin=MARGIN if settings.margin is None else settings.margin,
        )

    def start(self, ground: Ground, plan: Plan) -> UnitNetwork:
        """The lineage's units as they are, free ones drawn anew (Kaiming), their biases 0, their norms 1 and 0."""
        backbone, graph = ground.backbone, ground.backbone.units
        lineage, free = lineage_units(graph, ground), free_units(graph, ground)
        seen = {group: lineage[group] | free[group] for group in graph.sizes}
        state = ungated_state(backbone, ground.lineage, shared_weights(backbone, ground.lineage))
        for name, mask in between(graph, state, free, seen).items():
            drawn = nn.init.kaiming_normal_(torch.empty_like(state[name]), nonlinearity="relu")
            state[name] = torch.where(mask, drawn, state[name])
        for norm, group in graph.norms.items():
            state[f"{norm}.weight"] = torch.where(free[group], 1.0, state[f"{norm}.weight"])
        body = backbone.body()
        body.load_state_dict({**backbone.tensors, **state})
        return UnitNetwork(body, backbone.features, len(plan.classes), graph, lineage, free)

    def before_phase(self, bench: Bench, plan: Plan, phase: Phase, network: Network) -> tuple[Candidate, ...]:
        """Between the phases: the scan. From here on units that are not active are gated to exactly 0."""
        if phase.name == TRAIN:
            return ()
        assert plan.margin is not None
        return sparsify(_units(network), bench, plan.margin)

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """What leads from the units that the task sees to the free ones; later, to those that it adds."""
        found = _units(network)
        targets, sources = (found.free, found.seen) if phase.name == TRAIN else (found.new, found.used)
        graph = found.graph
        columns = graph.features_of(sources, ground.backbone.features)
        train: dict[str, Tensor | None] = {"head.bias": None}
        train["head.weight"] = columns.expand(len(plan.classes), -1)
        weights = {f"{layer}.weight": found.body.get_parameter(f"{layer}.weight") for layer in graph.layers}
        train |= {f"body.{name}": mask for name, mask in between(graph, weights, targets, sources).items()}
        for name, _ in found.body.named_parameters():
            module, _, field = name.rpartition(".")
            if module in graph.norms:
                train[f"body.{name}"] = targets[graph.norms[module]]
            elif field == "bias":
                train[f"body.{name}"] = graph.rows(module, targets)
        return {name: None if mask is None else mask.clone() for name, mask in train.items()}  # none shares memory

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """The units, and weights, norms and biases of those that are new."""
        found = _units(network)
        units = TaskUnits(found.used, found.new)
        tensors, masks = encode_units(units)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in found.body.state_dict().items()}
        for name, block in unit_blocks(state, ground.backbone, units).items():
            tensors[name] = stored(block, plan) if name.startswith("value/") else block
        return Payload(tensors, masks)


def lineage_units(graph: UnitGraph, ground: Ground) -> dict[str, Tensor]:
    """Group -> the units that the lineage owns: A."""
    owned = [units_of(graph, claim) for claim in ground.claims]
    none = {group: torch.zeros(size, dtype=torch.bool) for group, size in graph.sizes.items()}
    return {group: torch.stack([mask, *(mine[group] for mine in owned)]).any(0) for group, mask in none.items()}


def free_units(graph: UnitGraph, ground: Ground) -> dict[str, Tensor]:
    """Group -> the units that no version in the store owns."""
    taken = units_of(graph, {name: ~free for name, free in ground.free.items()})
    return {group: ~mask for group, mask in taken.items()}


def _units(network: Network) -> UnitNetwork:
    assert isinstance(network, UnitNetwork), "made by `start`"
    return network


def _check_capacity(lineage: Units, free: Units) -> None:
    mend = (
        "Delete a version that is no longer needed (`taskpack rm`), make a new store, or train a head on a task that "
        "is there: --method linear --on TASK"
    )
    if not any(bool(mask.any()) for mask in free.values()):
        raise OutOfCapacity(f"clnp has no free units here: tasks own them all. {mend}")
    bare = [group for group, mask in free.items() if not bool((mask | lineage[group]).any())]
    if bare:
        raise OutOfCapacity(f"clnp finds neither free units nor its lineage's in {', '.join(bare)}. {mend}")
