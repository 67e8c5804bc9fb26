"""Phase A of PackNet: after pruning a pretrained backbone, retrain what it keeps on its own data (METHODS §1.A)."""

from __future__ import annotations

from typing import final

from ..config import Settings
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import Phase
from ..plan import Choices, Plan
from .method import Method, Payload, bias_names, norm_names

HEAD, RETRAIN = "head", "retrain"


@final
class KeptWeights(Method):
    """Ten epochs of SGD 0.9, lr 1e-4, a tenth of it from the fifth on; biases and norm train too.

    Departure from the paper, which retrains under ImageNet's own head: a backbone file has none, and the data given
    may have other classes, so a new head is trained first, for three epochs, on the frozen pruned features.
    """

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """The published phase, after one for the head."""
        head = Phase(HEAD, 3, 1e-2, "constant")
        retrain = Phase(RETRAIN, settings.epochs or 10, settings.lr or 1e-4, "half", start_counts=True)
        return Choices((head, retrain), settings.batch_size or 32, own_norm=True)

    def start(self, ground: Ground, plan: Plan) -> Network:
        """The pruned backbone under a new head."""
        return ground.network(len(plan.classes), trains_norm=True)

    def slower(self, plan: Plan, phase: Phase) -> str:
        """`taskpack init` has no flag for a learning rate."""
        return "leave --data out: without it the kept weights stay as they are, and tasks train norms of their own"

    def set_up(self, phase: Phase, network: Network) -> None:
        """The norm stands still while the head is trained."""
        network.trains_norm = phase.name == RETRAIN

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """The head; then the kept weights, biases, norm and head. What was pruned stays 0."""
        head: Trainable = {"head.weight": None, "head.bias": None}
        if phase.name == HEAD:
            return head
        kept = {f"body.{name}": mask for name, mask in ground.backbone.kept.items()}
        return {**kept, **head, **dict.fromkeys(norm_names(network) + bias_names(network))}

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """Nothing: the result is a backbone file, which `backbone.py` writes."""
        return Payload({}, {})
