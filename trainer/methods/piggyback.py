"""Piggyback (arXiv 1801.06519): learn which weights of a frozen base a task uses, one bit each. METHODS §4."""

from __future__ import annotations

from typing import final

from masks_store import InvalidInput, encode_selection, norm_modules

from ..config import Settings
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import Optimizer, Phase
from ..plan import Choices, Plan
from ..selecting import add_masks, shown
from .method import Method, Payload, check_mask_optimizer, mask_trainables, norm_names, norm_tensors

EPOCHS, LR, MASK_FACTOR = 30, 1e-3, 0.3
PAPER_LR = 1e-4


@final
class Piggyback(Method):
    """A bitmask over all that the base owns, a norm, and a head; takes no shared weights and needs no order.

    Departures from the authors' code under either recipe: pictures go through the store's one preprocess and are
    cropped at random (`augment.py`), mirrored only on request; the best epoch on the validation split is kept.
    """

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """Adam, 30 epochs, batch 32. Recipe `best`: a cosine from 1e-3 for head and norm, masks at 0.3 of it; the norm
        is the task's own and starts from the base's.

        Recipe `paper` (METHODS §4): 1e-4 for mask and head, a tenth from the middle on; the norm is the base's, frozen,
        unless `--norm own` says otherwise.

        Raises:
            InvalidInput: an own norm where the backbone has none, or an optimiser that moves no mask.
        """
        check_mask_optimizer(settings, "piggyback")
        has_norm = bool(norm_modules(ground.backbone.shape_only()))
        if settings.norm == "own" and not has_norm:
            raise InvalidInput(f"--norm own: {ground.backbone.manifest.arch} has no BatchNorm; leave the flag out")
        optimizer: Optimizer = settings.optimizer or "adam"  # pyright: ignore[reportAssignmentType]
        paper = settings.recipe == "paper"
        phase = Phase(
            "train",
            settings.epochs or EPOCHS,
            settings.lr or (PAPER_LR if paper else LR),
            "half" if paper else "cosine",
            optimizer,
            weight_decay=settings.weight_decay or 0.0,
            mask_factor=1.0 if paper else MASK_FACTOR,
        )
        own_norm = has_norm and (settings.norm == "own" or (settings.norm == "auto" and not paper))
        return Choices((phase,), settings.batch_size or 32, own_norm=own_norm)

    def start(self, ground: Ground, plan: Plan) -> Network:
        """All that the lineage owns, bit for bit: every mask is on, the norm is the base's."""
        network = ground.network(len(plan.classes), trains_norm=plan.own_norm, anew=True)
        add_masks(network.body)
        return network

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """Masks and head, and the norm where it is the task's own; never a weight or a bias."""
        rest = ["head.weight", "head.bias"]
        rest += norm_names(network) if network.trains_norm else []
        return {**mask_trainables(ground), **dict.fromkeys(rest)}

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """The bits of every layer, and the norm in fp32 where it is the task's own."""
        tensors, masks = encode_selection("mask", shown(network.body), ground.backbone, ground.claims)
        return Payload({**tensors, **(norm_tensors(network) if network.trains_norm else {})}, masks)
