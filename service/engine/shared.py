"""The weights that all tasks share, on one device: `base`, the `pool` of all claims, and who owns each position.

`base` holds the backbone's own weights and never changes: what order-free tasks compute with. `pool` holds every
claim's values and is only ever the source of masked copies. Both lie as `places.py` says, once for
each dtype that is asked for; the float32 pool is the one that the others are made from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masks_store import Backbone, Claim, OutOfCapacity, Selection, numbered, positions, put

from .blocks import blocks_of
from .layout import DTYPES, Layout, Weights, layout_of
from .masking import write
from .program import Conv
from .ways import Ways, settle

FREE, KEPT, FIRST_CLAIM, OWNERS = 0, 1, 2, 1 << 15
PIECE = 1 << 17
"""Weights that are looked up at a time: their numbers, eight bytes each for a moment, stay in a core's cache."""


class Shared:
    """Base, pool and owners on one device.

    Reading (`base`, `fill`) never waits for a claim that is being written or released: that touches no position that
    another lineage sees.

    Args:
        backbone: the shared network.
        device: where the weights live.
        convs: parameter name -> the convolution that it belongs to.
        sizes: parameter name -> (H, W) of what its convolution reads.
        onednn: whether to use oneDNN's order where it can be.
        ways: how to write a view in one launch, where the device can.
        threads: that compute a forward; None: as many as the thread that first asks for a layout has.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        convs: Mapping[str, Conv] | None = None,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        *,
        onednn: bool = True,
        ways: Ways | None = None,
        threads: int | None = None,
    ) -> None:
        self.device = device
        self._whole = None if ways is None else ways.masking
        self._blocks: dict[str, Tensor | None] = {}
        self._backbone = backbone
        self._geometry = (convs or {}, sizes or {}, onednn)
        self._threads = threads
        self._layouts: dict[str, Layout] = {}
        self._base: dict[str, Weights] = {}
        self._pool: dict[str, Weights] = {}
        self._ids: dict[str, int] = {}
        self._lock = threading.RLock()  # of the dicts above
        self._writing = threading.RLock()  # of pool and owners; never held by a reader
        # On the host, row-major: only registrations read it. True is KEPT, False is FREE. Numbers that need two bytes
        # come in new tensors, so that who reads the old ones meanwhile sees the claims that he asked for.
        self._owners = {name: kept.to(torch.uint8) for name, kept in backbone.kept.items()}
        self._free = any(not bool(kept.all()) for kept in backbone.kept.values())

    def layout(self, dtype: str) -> Layout:
        """Where the weights of `fp32` or `bf16` lie."""
        with self._lock:
            if dtype not in self._layouts:
                shapes = {name: kept.shape for name, kept in self._backbone.kept.items()}
                convs, sizes, onednn = self._geometry
                self._layouts[dtype] = layout_of(
                    shapes, convs, sizes, dtype, self.device, onednn=onednn, threads=self._threads
                )
            return self._layouts[dtype]

    def base(self, dtype: str) -> Weights:
        """The backbone's own weights; made when first asked for."""
        with self._lock, torch.inference_mode(False):
            if dtype not in self._base:
                layout = self.layout(dtype)
                made = layout.new()
                for name, place in layout.places.items():
                    made.memory[name].copy_(place.arranged(self._backbone.tensors[name]))
                settle(self.device)
                self._base[dtype] = made
            return self._base[dtype]

    def pool(self, dtype: str) -> Weights:
        """Every claim's value and the backbone's; made when first asked for."""
        with self._lock:
            if dtype in self._pool:
                return self._pool[dtype]
        with self._writing, self._lock:
            if dtype not in self._pool:
                self._pool[dtype] = self._new_pool(dtype)
            return self._pool[dtype]

    @torch.inference_mode(False)  # a forward may be the first to ask: what it made then could not be written any more
    def _new_pool(self, dtype: str) -> Weights:
        if not self._free:
            return self.base(dtype)  # nothing can ever be claimed: one copy serves as both
        made, layout = self.layout(dtype).new(), self.layout(dtype)
        full = None if dtype == "fp32" else self.pool("fp32")
        for name, place in layout.places.items():
            if full is None:
                weight = self._backbone.tensors[name]
            else:
                weight = self.layout("fp32").places[name].restored(full.memory[name])
            made.memory[name].copy_(place.arranged(weight))
        settle(self.device)
        return made

    def claims(self) -> frozenset[str]:
        """The versions whose claims are in the pool."""
        with self._lock:
            return frozenset(self._ids)

    def claim_of(self, version: str) -> dict[str, Tensor]:
        """Parameter name -> bool [its shape] on the CPU: what a version in the pool owns."""
        with self._lock:
            owner_id = self._ids[version]
        return {name: owner == owner_id for name, owner in self._owners.items()}

    def owners_of(self, claim: Claim) -> list[str]:
        """The versions (or `backbone`) that own a position of `claim` now; empty when it may be written."""
        found: set[int] = set()
        for name, mask in claim.items():
            owners = self._owners[name].view(-1)[positions(mask)]
            found |= {int(i) for i in owners[owners != FREE].unique().tolist()}  # most often none
        with self._lock:
            names = {owner_id: version for version, owner_id in self._ids.items()} | {KEPT: "backbone"}
        return sorted(names[owner_id] for owner_id in found)

    def claim(self, version: str, claim: Claim, values: Mapping[str, Tensor]) -> None:
        """Write a version's claim: its values into the pool, then its name on the positions.

        Args:
            version: whose claim it is.
            claim: parameter name -> bool of its shape; positions that nobody owns (`owners_of` is empty).
            values: parameter name -> float32 [claimed weights], row-major.

        Raises:
            OutOfCapacity: more claims than owner numbers.
        """
        self.pool("fp32")
        with self._writing:
            if version in self.claims():
                return
            owner_id = self._free_id()
            self._owners = numbered(self._owners, owner_id)
            with self._lock:
                pools = [(self.layout(dtype), pool) for dtype, pool in self._pool.items()]
            for name, mask in claim.items():
                where, own = positions(mask), values[name].float().cpu()
                for layout, pool in pools:
                    at, which = layout.places[name].moved(where)
                    put(pool.memory[name], at, own[which])
                self._owners[name].view(-1)[where] = owner_id
            settle(self.device)
            with self._lock:
                self._ids[version] = owner_id

    def release(self, version: str) -> None:
        """Free a version's positions; its values stay where they are until another claim takes them."""
        with self._writing:
            with self._lock:
                owner_id = self._ids.pop(version, None)
            if owner_id is not None:
                for owner in self._owners.values():
                    owner.view(-1)[positions(owner == owner_id)] = FREE

    def _free_id(self) -> int:
        with self._lock:
            used = set(self._ids.values())
        found = next((i for i in range(FIRST_CLAIM, OWNERS) if i not in used), None)
        if found is None:
            raise OutOfCapacity(f"this replica holds {len(used)} claims, the most it can number")
        return found

    def shown(self, dtype: str, claims: Iterable[str], selection: Selection | None = None) -> Tensor:
        """What a version sees, one bit a position: what the backbone keeps or `claims` own, and `selection` shows.

        Args:
            dtype: of the weights that it is for.
            claims: versions in the pool.
            selection: parameter name -> bool of its shape, False where hidden; layers that are not there show all.

        Returns:
            As `Layout.bits`.
        """
        with self._lock:
            seen = [KEPT, *(self._ids[version] for version in claims)]
        table = np.zeros(max(seen) + 2, np.float32)  # its last: of all that came later
        table[seen] = 1.0

        def masks() -> Iterator[tuple[str, Tensor]]:
            for name, owner in self._owners.items():
                mask = _looked_up(table, owner)
                yield name, mask.mul_(selection[name]) if selection and name in selection else mask

        return self.layout(dtype).packed(masks())

    def fill(
        self,
        out: Weights,
        dtype: str,
        shown: Tensor | None,
        scales: Mapping[str, Tensor],
        *,
        base: bool = False,
        scale_table: Tensor | None = None,
    ) -> None:
        """Materialise a view: where(shown, pool x scale, +0.0), layer by layer, or in one launch where that can be.

        Args:
            out: of `dtype`, overwritten.
            dtype: `fp32` or `bf16`.
            shown: what it sees (`shown`); None: all.
            scales: parameter name -> float32 [O], the scale of each output channel; layers without keep theirs.
            base: take the base's weights and not the pool's.
            scale_table: `scales` as `overlay.Layers.scale_table` has them; only with it can it be one launch.
        """
        source = self.base(dtype) if base else self.pool(dtype)
        blocks = None if scales and scale_table is None else self._launch(dtype)
        if self._whole is not None and blocks is not None:
            assert out.flat is not None
            assert source.flat is not None
            self._whole(out.flat, source.flat, shown, scale_table if scales else None, blocks)
            return
        layout = self.layout(dtype)
        for name, place in layout.places.items():
            bits = None if shown is None else shown[layout.offsets[name] // 8 :]
            scale = scales.get(name)
            write(out.memory[name], source.memory[name], bits, None if scale is None else scale[place.channels])

    def _launch(self, dtype: str) -> Tensor | None:
        """How one launch is divided; None where a view cannot be written in one."""
        if self._whole is None:
            return None
        with self._lock:
            if dtype not in self._blocks:
                self._blocks[dtype] = blocks_of(self.layout(dtype))
            return self._blocks[dtype]


def _looked_up(table: NDArray[np.float32], owner: Tensor) -> Tensor:
    """float32 [its shape]: what the table has for each number; its last for those beyond it."""
    flat, found = owner.view(-1).numpy(), torch.empty(owner.shape)
    out = found.view(-1).numpy()
    for at in range(0, len(flat), PIECE):
        np.take(table, flat[at : at + PIECE], out=out[at : at + PIECE], mode="clip")
    return found


__all__ = ["DTYPES", "Shared"]
