"""What the one training loop asks of a method: which tensors train, what happens between phases, what to export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from masks_store import NORM_FIELDS, InvalidInput, MaskInfo, bias_params, norm_modules, packable

from ..config import VALUE_DTYPES, Settings
from ..freeze import Trainable
from ..ground import Ground
from ..network import Network
from ..phase import Phase
from ..plan import Choices, Plan
from ..selecting import REAL_MASK
from ..sparsify import Bench, Candidate

Hits = Mapping[str, Tensor]
"""Name of a phase that has been run -> bool [n]: the validation pictures that its best gets right."""


@dataclass(frozen=True)
class Payload:
    """What a task adds: the artifact's tensors (head and probe apart) and its coded masks."""

    tensors: Mapping[str, Tensor]
    masks: Mapping[str, MaskInfo]


class Method(ABC):
    """A way to pack one task. Final classes hold no state: what changes is the network and what of it may train.

    Attributes:
        takes_weights: whether it claims free weights of the store.
        in_store: whether what it gives is an artifact; a network of its own is not.
    """

    takes_weights: bool = False
    in_store: bool = True

    @abstractmethod
    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """Resolve the user's settings: phases, norm, share."""

    @abstractmethod
    def start(self, ground: Ground, plan: Plan) -> Network:
        """The network before the first step; random parts come from torch's global generator."""

    def settle(self, plan: Plan, phase: Phase, hits: Hits) -> Phase | None:
        """A phase as it is to be run, now that the ones before it are done; None to leave it out."""
        return phase

    def slower(self, plan: Plan, phase: Phase) -> str:
        """What to try where a phase diverged: the flag that its learning rate comes from, at a third."""
        return f"try --lr {plan.phases[0].lr / 3:.2g}"

    def set_up(self, phase: Phase, network: Network) -> None:  # noqa: B027
        """Set what a phase needs of the network beside its state dict, in place: by default, nothing.

        Asked as the phase begins, before `enter`, and as a resumed run goes on in it, where `enter` is not.
        """

    @abstractmethod
    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """Prepare the network for a phase, in place, and say what trains in it.

        Args:
            ground: what the task stands on.
            plan: the run.
            phase: the one that begins.
            network: at the best of `phase.start`, or of the phase before.
            before: what trained in the phase before; None at the start.
        """

    def before_phase(self, bench: Bench, plan: Plan, phase: Phase, network: Network) -> tuple[Candidate, ...]:
        """Change the network, in place, by what it computes on the task's pictures, before `enter`: by default, not.

        Args:
            bench: the pictures.
            plan: the run.
            phase: the one that begins.
            network: at the best of the phase before.

        Returns:
            The thresholds that were tried, for the run's report.

        Raises:
            Interrupted: the run was asked to stop meanwhile; what the network holds then is thrown away.
        """
        return ()

    @abstractmethod
    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> Payload:
        """What the artifact holds besides head and probe, in the plan's value dtype.

        Args:
            ground: what the task stands on.
            plan: the run.
            network: trained, and already rounded to the value dtype.
            trained: what trained in the last phase.
        """


# ---------------------------------------------------------------- parts that methods share


def norm_names(network: Network) -> list[str]:
    """The network's names of every BatchNorm scale and shift."""
    return [f"body.{name}.{field}" for name in norm_modules(network.body) for field in ("weight", "bias")]


def norm_tensors(network: Network) -> dict[str, Tensor]:
    """The artifact's `norm/<module>.{weight,bias,running_mean,running_var}`, float32 [C]."""
    state = network.body.state_dict()
    names = [f"{name}.{field}" for name in norm_modules(network.body) for field in NORM_FIELDS]
    return {f"norm/{name}": state[name].detach().cpu() for name in names}


def bias_names(network: Network) -> list[str]:
    """The network's names of every convolution's and linear layer's bias."""
    return [f"body.{name}" for name in bias_params(network.body)]


def packable_names(network: Network) -> list[str]:
    """The backbone's names of the weights that tasks may own."""
    return list(packable(network.body))


def mask_trainables(ground: Ground) -> Trainable:
    """What may train of the real-valued masks: only over weights that the lineage owns, which are there to select."""
    layers = {name.removesuffix("weight"): owned for name, owned in ground.owned.items()}
    return {f"body.{layer}{REAL_MASK}": None if bool(owned.all()) else owned for layer, owned in layers.items()}


def check_mask_optimizer(settings: Settings, what: str) -> None:
    """Refuse SGD for real-valued masks, in place of training nothing.

    Raises:
        InvalidInput: says which optimisers there are.
    """
    if settings.optimizer == "sgd":
        raise InvalidInput(
            f"--optimizer sgd does not go with {what}: a mask's gradients are too small to flip its bits unless "
            "their scale is taken out; use adam or adamw"
        )


def stored(tensor: Tensor, plan: Plan) -> Tensor:
    """A trained tensor as the artifact stores it."""
    return tensor.detach().to("cpu", VALUE_DTYPES[plan.value_dtype])
