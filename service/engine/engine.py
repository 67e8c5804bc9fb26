"""The engine: a device, the shared weights on it, and one forward for a batch of tasks that see the same ones.

It knows neither HTTP nor the store. A task is passed in as a `DeviceOverlay`, never set on anything.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from masks_store import Backbone, Claim, InvalidInput, Overlay, adapter_sites, plain_arithmetic

from . import onednn
from .compiled import compiled, describe
from .forward import Body, Segment, features
from .layout import DTYPES, Weights, own_key, own_weights
from .operators import Kernels, Weight
from .overlay import DeviceOverlay, frame_of
from .program import Conv, trace
from .rows import Addressed, Row, RowForm, addresses_of
from .shared import Shared
from .slots import Slots
from .stages import Stage, Stages, bucket_of
from .ways import Ways, find_ways, settle

BUILD = "folded-2"
"""Changes whenever the engine may compute other numbers: cached probe results are kept under it."""

VIEWS = 8
"""Most float32 views that are kept where forwards are recorded."""

Pictures = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sight:
    """Which shared weights a task sees. Tasks with equal sights may share a forward.

    Attributes:
        key: `masks_store.weights_key`: the backbone's digest, or the version whose masks decide.
        claims: versions of the lineage that hold a claim, root first.
    """

    key: str
    claims: tuple[str, ...]


class Engine:
    """One device. `run` may be called from as many threads as `readers` says.

    Args:
        backbone: the shared network.
        device: `cpu`, `cuda` or `cuda:N`.
        slot_bytes: memory for materialised views.
        readers: threads that run forwards at once.
        kernels: the operators to compute with.
        onednn: whether to use oneDNN's own order of the weights where that can be shown to be safe.
        ways: a GPU's fast ways; by default those that are found good on the device.
        graph_bytes: device memory for recorded forwards; by default an eighth of what is free.
        native: whether tasks' adapters and norms are computed by the C function, on a CPU and where it is built.
        threads: of torch that compute a forward, on a CPU; by default those of the thread that first asks.

    Raises:
        InvalidInput: no such device, or a network that cannot be traced.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: str = "cpu",
        slot_bytes: int = 0,
        readers: int = 1,
        kernels: Kernels | None = None,
        onednn: bool = True,
        ways: Ways | None = None,
        graph_bytes: int | None = None,
        native: bool = True,
        threads: int | None = None,
    ) -> None:
        self.device = find_device(device)
        self.ways = find_ways(self.device) if ways is None else ways
        self.backbone = backbone
        program = trace(backbone.shape_only())
        self._convs = {step.weight: step for step in program.steps if isinstance(step, Conv)}
        read = backbone.shapes.inputs
        self._sizes = {name: (read[conv.module][1], read[conv.module][2]) for name, conv in self._convs.items()}
        self.shared = Shared(
            backbone, self.device, self._convs, self._sizes, onednn=onednn, ways=self.ways, threads=threads
        )
        if self.ways.capture is not None:  # a miss costs one launch, a view in a slot recordings of its own
            slot_bytes = min(slot_bytes, VIEWS * self.shared.layout("fp32").nbytes)
        self.slots = Slots(self.shared, slot_bytes, readers)
        side, room = backbone.manifest.image_size, graph_bytes if graph_bytes is not None else _an_eighth(self.device)
        self._stages = Stages(self.device, side, self.ways.capture, room)
        self._kernels = kernels or self.ways.kernels or Kernels()
        # alive in overlays:
        self._own_weights: weakref.WeakValueDictionary[str, Weights] = weakref.WeakValueDictionary()
        self._frame = frame_of(program, backbone, self.device)
        body = backbone.shape_only()
        self._forms = [self._frame.row_form(adapter_sites(body, full=full).keys()) for full in (False, True)]
        constants = {index: backbone.tensors[name].to(self.device) for index, name in program.constants.items()}
        self._compiled = native and self.device.type == "cpu" and compiled() is not None
        self._bodies = {
            dtype: Body(self._frame, self._frame.layers(None, dtype, folds=False, compiled=self._compiled), constants)
            for dtype in DTYPES
        }
        self._onednn = onednn

    @property
    def build(self) -> str:
        """Names all that the numbers depend on besides the device and the dtype."""
        fast = [name for name in ("masking", "kernels", "capture") if getattr(self.ways, name) is not None]
        direct = " direct" if self._onednn and self.device.type == "cpu" and onednn.found()[0] is not None else ""
        kinds = f"{'' if self._onednn else ' plain'}{direct}{' native' if self._compiled else ''}"
        return " ".join([f"{BUILD}{kinds}", *fast, f"torch-{torch.__version__}"])

    @property
    def computes(self) -> str:
        """Who writes views and computes adapters and convolutions, and why, for people."""
        if self.device.type != "cpu":
            found = [name for name in ("masking", "kernels") if getattr(self.ways, name) is not None]
            return f"Triton's {' and '.join(found)}, on a GPU" if found else "torch's operators, on a GPU"
        return f"{describe()}; {onednn.describe()}" if self._onednn else describe()

    @property
    def device_name(self) -> str:
        """Names the kind of device, as probe results are kept under it."""
        if self.device.type == "cuda":
            return f"cuda {torch.cuda.get_device_name(self.device)}"
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"

    def load(
        self,
        version: str,
        overlay: Overlay,
        dtype: str,
        *,
        folds: bool,
        shown: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
        alone: bool = False,
    ) -> DeviceOverlay:
        """Bring a task's own tensors to the device and a compute dtype; norms and head stay float32.

        Args:
            version: whose they are.
            overlay: as `masks_store.overlay_of` gives it.
            dtype: `fp32` or `bf16`.
            folds: whether its norm goes into its view; not for what many tasks are to share a forward with (clr, bn).
            shown: of `Shared.shown`, for a task that does not see the backbone alone.
            weights: parameter name -> float32 weight, of a smaller network of its own (`masks_store.cut_view`) or of a
                view that is in no pool yet (`masks_store.View.weights`).
            alone: the weights are of this version only, so that they need not be compared with others' by their digest.
        """
        row = None if folds or self._kernels.rows is None else self._row(overlay, weights or {})
        layers = self._frame.layers(
            overlay, dtype, folds=folds, compiled=self._compiled, by_row=row is not None
        )  # its numbers are on the device once
        head = (overlay.head_weight, overlay.head_bias)
        head_weight, head_bias = (tensor.to(self.device, torch.float32).contiguous() for tensor in head)
        own = None
        if weights is not None:
            key = f"{version} {dtype}" if alone else own_key(weights, dtype, layers.scales)
            own = self._own(key, weights, layers.scales, dtype)
        size = layers.nbytes + head_weight.nbytes + head_bias.nbytes + (0 if row is None else row.numbers.nbytes)
        settle(self.device)
        return DeviceOverlay(version, layers, folds, head_weight, head_bias, size, shown, own, row)

    def _row(self, overlay: Overlay, weights: Mapping[str, Tensor]) -> Row | None:
        """In the smallest form that has room for its adapters; None on a smaller network, for no form has its sizes."""
        places = self.shared.layout("fp32").places
        if any(weight.shape != places[name].shape for name, weight in weights.items()):
            return None
        form = next((form for form in self._forms if overlay.adapter.keys() <= form.tapped), None)
        return None if form is None else self._frame.row(overlay, form)

    def bare(self, head: Tensor, dtype: str) -> DeviceOverlay:
        """The backbone alone under a head float32 [rows, features]: to warm up with, or to project features."""
        head, bias = head.to(self.device, torch.float32).contiguous(), torch.zeros(len(head), device=self.device)
        layers = self._frame.layers(None, dtype, folds=True, compiled=self._compiled)
        settle(self.device)
        return DeviceOverlay("bare", layers, True, head, bias, head.nbytes)

    def claim(self, version: str, claim: Claim, values: Mapping[str, Tensor]) -> None:
        """Write a version's claim into the pool; changes no bit that another task reads."""
        self.shared.claim(version, claim, values)

    def release(self, version: str) -> None:
        """Give a claim's positions back and forget the view that ends in it. Nobody may be about to read it."""
        self.slots.drop(version)
        self.shared.release(version)

    def run(self, sight: Sight, dtype: str, images: Sequence[Pictures], tasks: Sequence[DeviceOverlay]) -> list[Logits]:
        """Answer requests whose tasks see the same weights: one forward for all that can share it.

        Tasks that fold share one with those of the same norm, the others all with one another; on a GPU with those
        whose rows are of one form. Tasks that bring weights share them with those that bring the very same.

        Args:
            sight: what they see of the shared weights; not looked at for tasks that bring their own.
            dtype: `fp32` or `bf16`, the one that `tasks` were loaded for.
            images: uint8 [n, H, W, 3] per request.
            tasks: one per request.

        Returns:
            float32 [n, classes] per request, in their order.
        """
        shares: dict[tuple[str | None, str | RowForm | None], list[int]] = {}
        for i, task in enumerate(tasks):
            own = None if task.weights is None else task.weights.key
            form = None if task.row is None else task.row.form
            shares.setdefault((own, task.layers.key if task.folds else form), []).append(i)
        answers: list[Logits] = [np.empty((0, 0), np.float32)] * len(tasks)
        for members in shares.values():
            mine = [tasks[i] for i in members]
            with self._weights(sight, dtype, mine[0]) as weights:
                logits = self._forward(weights, dtype, [images[i] for i in members], mine)
            for i, answer in zip(members, logits, strict=True):
                answers[i] = answer
        return answers

    def answers(self) -> bool:
        """Whether the device still computes: a CUDA context that an error has broken never does again."""
        if self.device.type == "cuda":
            try:
                with self._stages.computing():
                    torch.cuda.synchronize(self.device)
            except RuntimeError:
                return False
        return True

    def _forward(
        self, weights: Weights, dtype: str, images: Sequence[Pictures], tasks: Sequence[DeviceOverlay]
    ) -> list[Logits]:
        """One forward; `tasks` all fold the same norm, or none of them folds."""
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].layers.key, tasks[i].version))
        counts = [len(images[i]) for i in order]
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        stage = self._stages.of(weights)
        arithmetic = plain_arithmetic() if self.device.type == "cuda" else nullcontext()
        # The stage is held until the answer is on the host: what it computes with is free for others only then.
        with torch.inference_mode(), arithmetic, stage.held(), stage.queue():
            parts, own = [images[i] for i in order], [tasks[i] for i in order]
            spans: list[tuple[int, int, DeviceOverlay]] = []  # rows [start, stop) of each task
            for _, group in groupby(range(len(order)), key=lambda at: own[at].version):
                at = list(group)
                spans.append((starts[at[0]], starts[at[-1] + 1], own[at[0]]))
            heads = self._heads_of(spans, starts[-1])  # before the forward is launched, which a copy would wait for
            rows = self._recorded(stage, weights, dtype, parts, own)  # [N, features]
            if rows is None:
                pixels = _batch(parts).to(self.device)  # uint8 [N, H, W, 3]
                with self._stages.computing():
                    rows = self._features(weights.tensors, dtype, pixels, _segments(own, starts), folded=own[0].folds)
            by_row = self._logits(rows, spans, heads)
        return _per_request(by_row, spans, order, starts)

    def _heads_of(self, spans: Sequence[tuple[int, int, DeviceOverlay]], rows: int) -> Tensor | None:
        """Where each row's head lies: addresses of weights and of biases, and its classes, int64 [3, rows].

        None where one task's head is a product, or no kernel takes several.
        """
        if self._kernels.rows is None or len(spans) < 2:
            return None
        counts, tasks = [b - a for a, b, _ in spans], [task for _, _, task in spans]
        weights = addresses_of([task.head_weight for task in tasks], counts, rows)
        biases = addresses_of([task.head_bias for task in tasks], counts, rows)
        classes = torch.tensor([len(task.head_bias) for task in tasks]).repeat_interleave(torch.tensor(counts))
        return torch.stack([weights, biases, classes]).to(self.device)

    def _logits(
        self, rows: Tensor, spans: Sequence[tuple[int, int, DeviceOverlay]], given: Tensor | None
    ) -> list[Logits]:
        """float32 [N, features] and the rows of each task -> its logits, on the host; one transfer."""
        if given is not None:
            assert self._kernels.rows is not None
            most = max(len(task.head_bias) for _, _, task in spans)
            all_ = self._kernels.rows.heads(rows, given[0], given[1], given[2], most).cpu().numpy()  # [N, most]
            return [all_[a:b, : len(task.head_bias)] for a, b, task in spans]
        heads = [F.linear(rows[a:b], task.head_weight, task.head_bias) for a, b, task in spans]  # [n, classes] each
        flat = torch.cat([logits.reshape(-1) for logits in heads]).cpu().numpy()
        by_row: list[Logits] = []
        for logits in heads:
            by_row.append(flat[: logits.numel()].reshape(tuple(logits.shape)))
            flat = flat[logits.numel() :]
        return by_row

    def _features(
        self,
        weights: Mapping[str, Weight],
        dtype: str,
        pixels: Tensor,
        segments: Sequence[Segment],
        *,
        folded: bool = False,
        addressed: Addressed | None = None,
    ) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, features]."""
        inputs = self._kernels.pixels(pixels, self.backbone.manifest.preprocess, DTYPES[dtype])
        body = self._bodies[dtype]
        return features(body, weights, segments, inputs, self._kernels, folded=folded, addressed=addressed).float()

    def _recorded(
        self, stage: Stage, weights: Weights, dtype: str, images: Sequence[Pictures], tasks: Sequence[DeviceOverlay]
    ) -> Tensor | None:
        """float32 [N, features] from a recorded forward, or from a batch of rows; None where this batch is neither."""
        counts = [len(part) for part in images]
        layers, tensors, row = tasks[0].layers, weights.tensors, tasks[0].row
        if row is not None:
            form, numbers = row.form, [task.row.numbers for task in tasks if task.row is not None]

            def compute(pixels: Tensor, given: Tensor) -> Tensor:
                return self._features(tensors, dtype, pixels, [], addressed=Addressed(form, given))

            given = addresses_of(numbers, counts, bucket_of(sum(counts)))
            name = f"rows of {len(form.tapped)}"
        elif tasks[0].folds and not layers.behind:  # norms before the convolutions are in no weight

            def compute(pixels: Tensor, given: Tensor) -> Tensor:
                segment = Segment(0, len(pixels), layers.with_biases(given))
                return self._features(tensors, dtype, pixels, [segment], folded=True)

            given = torch.empty(0, device=self.device) if layers.bias_table is None else layers.bias_table
            name = "folded"
        else:
            return None
        found = self._stages.run(stage, name, dtype, images, given, compute)
        if found is None and row is not None:
            pixels = _batch(images).to(self.device)
            with self._stages.computing():
                return compute(pixels, given[: len(pixels)].to(self.device))
        return found

    @property
    def recorded_bytes(self) -> int:
        """Bytes of device memory that recorded forwards take now."""
        return self._stages.nbytes

    def resident(self, sight: Sight, dtype: str) -> bool:
        """Whether the weights of this sight are loaded; a task that folds another norm may still need a view made."""
        return sight.key == self.backbone.digest or self.slots.holds(sight.key, dtype)

    def _weights(self, sight: Sight, dtype: str, task: DeviceOverlay) -> AbstractContextManager[Weights]:
        if task.weights is not None:
            return nullcontext(task.weights)
        base = sight.key == self.backbone.digest
        if base and not task.folds:
            return nullcontext(self.shared.base(dtype))
        norm = f"norm {task.layers.key}" if task.folds else ""
        return self.slots.view((sight.key, norm), dtype, lambda out: self._fill(out, dtype, task, base=base))

    def _fill(self, out: Weights, dtype: str, task: DeviceOverlay, *, base: bool) -> None:
        layers = task.layers
        scales, table = (layers.scales, layers.scale_table) if task.folds else ({}, None)
        with torch.inference_mode(), self._stages.of(out).queue():
            self.shared.fill(out, dtype, task.shown, scales, base=base, scale_table=table)

    def _own(self, key: str, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor], dtype: str) -> Weights:
        found = self._own_weights.get(key)  # of a loaded task that has the very same
        if found is None:
            made = own_weights(key, weights, self.shared.layout(dtype), scales)
            found = self._own_weights.setdefault(key, made)
        return found


def find_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        InvalidInput: a device that is not there, with what is.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if gpus else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise InvalidInput(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if int(index or 0) >= gpus:
        raise InvalidInput(f"device {name!r} is not there: this machine has {gpus} usable GPU(s); try --device cpu")
    return torch.device("cuda", int(index or 0))


def _an_eighth(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 8 if device.type == "cuda" else 0


def _batch(images: Sequence[Pictures]) -> Tensor:
    """uint8 [N, H, W, 3] of all, in memory that this thread keeps for its next batch."""
    shape = sum(len(part) for part in images), *images[0].shape[1:]
    size = math.prod(shape)
    held = onednn.thread_memory("pixels", size)[:size].view(shape)
    np.concatenate(images, out=held.numpy())
    return held


def _per_request(
    logits: Sequence[Logits],
    spans: Sequence[tuple[int, int, DeviceOverlay]],
    order: Sequence[int],
    starts: Sequence[int],
) -> list[Logits]:
    """Cut each task's logits into its requests, in the order in which these came."""
    answers: list[Logits] = [np.empty((0, 0), np.float32)] * len(order)
    task = 0
    for at, request in enumerate(order):
        while starts[at] >= spans[task][1]:
            task += 1
        first = spans[task][0]
        answers[request] = logits[task][starts[at] - first : starts[at + 1] - first]
    return answers


def _segments(tasks: Sequence[DeviceOverlay], starts: Sequence[int]) -> list[Segment]:
    """Requests sorted by path, `starts` their first rows -> one segment per path."""
    segments: list[Segment] = []
    for _, group in groupby(range(len(tasks)), key=lambda at: tasks[at].layers.key):
        at = list(group)
        segments.append(Segment(starts[at[0]], starts[at[-1] + 1], tasks[at[0]].layers))
    return segments
