"""What CLR and its baselines have in common: nothing shared is touched, so they need no order and no free weights."""

from __future__ import annotations

from masks_store import InvalidInput, norm_modules

from ..config import Settings
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import Optimizer, Phase
from ..plan import Choices, Plan
from .method import Method, Payload, norm_names, norm_tensors, stored

EPOCHS, LR, PENALTY = 30, 3e-3, 1e-5
PAPER_EPOCHS, PAPER_LR, PATIENCE = 60, 1e-3, 21


class OverlayMethod(Method):
    """Adapters (or not), a norm of its own (or not), and a head, over a frozen base."""

    adapters: bool
    norm: bool

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """Adam, batch 32, penalty 1e-5; recipe `best`: from 3e-3 along a cosine over 30 epochs, cropped at random.

        Recipe `paper` (METHODS §2): 1e-3, a tenth after every third of 60 epochs, early stop, no augmentation.

        Raises:
            InvalidInput: the method trains a norm and the backbone has none.
        """
        if self.norm and not norm_modules(ground.backbone.shape_only()):
            arch = ground.backbone.manifest.arch
            raise InvalidInput(
                f"{settings.method} trains a BatchNorm of its own, and {arch} has no BatchNorm; use linear"
            )
        optimizer: Optimizer = settings.optimizer or "adam"  # pyright: ignore[reportAssignmentType]
        paper = settings.recipe == "paper"
        phase = Phase(
            "train",
            settings.epochs or (PAPER_EPOCHS if paper else EPOCHS),
            settings.lr or (1e-2 if optimizer == "sgd" else PAPER_LR if paper else LR),
            "thirds" if paper else "cosine",
            optimizer,
            weight_decay=settings.weight_decay or 0.0,
            penalty=PENALTY,
            patience=PATIENCE if paper else None,
        )
        return Choices((phase,), settings.batch_size or 32, own_norm=self.norm, augment=not paper)

    def start(self, ground: Ground, plan: Plan) -> Network:
        """The base, bit for bit: adapters start as the identity, the norm as the base's."""
        return ground.network(
            len(plan.classes), trains_norm=plan.own_norm, adapters=plan.adapter if self.adapters else None
        )

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """Head, norm and adapters, each whole; on a clnp task the norms of its units, since all others are gated."""
        names = ["head.weight", "head.bias"]
        names += adapter_names(network) if self.adapters else []
        norms = norm_names(network) if network.trains_norm else []
        units = ground.units
        if units is None:
            return dict.fromkeys(names + norms)
        groups = ground.backbone.units.norms
        seen = {name: units[groups[name.removeprefix("body.").rpartition(".")[0]]].clone() for name in norms}
        return {**dict.fromkeys(names), **seen}

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """Adapters in the value dtype, the norm in fp32."""
        tensors = norm_tensors(network) if network.trains_norm else {}
        for name in adapter_names(network) if self.adapters else []:
            site = name.removeprefix("body.").removesuffix(".adapter")
            tensors[f"adapter/{site}"] = stored(network.get_parameter(name), plan)
        return Payload(tensors, {})


def adapter_names(network: Network) -> list[str]:
    """The network's names of all adapters."""
    return [name for name, _ in network.named_parameters() if name.endswith(".adapter")]
