"""Whatever happens to the store, in any order, every version that answers gives the reference's logits."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from masks_store import Artifact, NotFound, Store, VersionInUse, read_artifact
from service.serving import Serving

from .. import zoo
from . import live, rig

PACKNET, OTHERS = "packnet", ("clr", "bn", "linear")


@dataclass
class Known:
    """What the model knows of a version: enough to compute its logits without store or engine."""

    task: str
    lineage: list[Artifact]
    expected: torch.Tensor
    state: str = "ready"

    @property
    def version(self) -> str:
        return self.lineage[-1].version


class Replica(RuleBasedStateMachine):
    """A served store, changed by this process and, without telling the server, by others."""

    versions: Bundle[Known] = Bundle("versions")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = live.empty_store(self.folder / "store")
        self.images = rig.pictures(self.store.backbone, 2, 5)
        self.known: list[Known] = []
        self.labels: dict[tuple[str, str], str] = {}
        self.made = 0
        self.runner = asyncio.Runner()
        self.start()

    def start(self) -> None:
        self.serving = Serving(self.store, device="cpu", workers=2, max_batch=4, slot_bytes=0, host_bytes=1 << 14)
        self.runner.run(self.serving.start())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.serving.stop(5.0))
            self.runner.close()
            shutil.rmtree(self.folder)

    # ------------------------------------------------------------ changes

    @rule(
        target=versions,
        name=st.sampled_from(["birds", "cars", "signs"]),
        share=st.sampled_from([0.1, 0.5, 1.0]),
        own_norm=st.booleans(),
        here=st.booleans(),
    )
    def register_packnet(self, name: str, share: float, own_norm: bool, here: bool) -> Any:
        return self.register(name, PACKNET, [], here, share=share, own_norm=own_norm)

    @rule(
        target=versions,
        base=versions,
        name=st.sampled_from(["birds", "cars", "signs"]),
        own_norm=st.booleans(),
        here=st.booleans(),
    )
    def register_packnet_on(self, base: Known, name: str, own_norm: bool, here: bool) -> Any:
        if base.state == "deleted" or base.lineage[-1].manifest.method != PACKNET:
            return multiple()
        return self.register(name, PACKNET, base.lineage, here, share=0.3, own_norm=own_norm)

    @rule(target=versions, name=st.sampled_from(["birds", "cars"]), method=st.sampled_from(OTHERS), here=st.booleans())
    def register_order_free(self, name: str, method: str, here: bool) -> Any:
        return self.register(name, method, [], here)

    @rule(
        target=versions,
        base=versions,
        name=st.sampled_from(["birds", "cars"]),
        method=st.sampled_from(OTHERS),
        here=st.booleans(),
    )
    def register_order_free_on(self, base: Known, name: str, method: str, here: bool) -> Any:
        if base.state == "deleted":
            return multiple()
        return self.register(name, method, base.lineage, here)

    def register(self, name: str, method: str, ancestors: list[Artifact], here: bool, **options: Any) -> Known:
        """Register a version: `here` through the server's own prober, else as another process does."""
        self.made += 1
        backbone, taken = self.store.backbone, list(self.store.claims().values())
        data = zoo.task(backbone, name, method, ancestors=ancestors, taken=taken, seed=self.made, **options)
        lineage = [*ancestors, read_artifact(data)]
        if here:
            self.store.register(data, label="none", prober=self.serving.prober)
            self.runner.run(self.serving.refresh())
        else:
            Store.open(self.store.path).register(data, label="none")
        known = Known(name, lineage, rig.reference(backbone, lineage, self.images))
        self.known.append(known)
        return known

    @rule(known=versions, label=st.sampled_from(["stable", "canary"]))
    def relabel(self, known: Known, label: str) -> None:
        if known.state == "ready":
            self.store.set_label(known.task, label, known.version)
            self.labels[known.task, label] = known.version

    @rule(known=versions)
    def unlabel(self, known: Known) -> None:
        for (task, label), version in list(self.labels.items()):
            if version == known.version:
                self.store.drop_label(task, label)
                del self.labels[task, label]

    @rule(known=versions, retire=st.booleans(), told=st.booleans())
    def delete(self, known: Known, retire: bool, told: bool) -> None:
        if known.state == "deleted":
            return
        labelled = known.version in self.labels.values()
        built_on = any(
            k.state != "deleted" and known.version in [a.version for a in k.lineage[:-1]] for k in self.known
        )
        if labelled or (built_on and not retire):
            with pytest.raises(VersionInUse):
                self.store.delete_version(known.task, known.version, retire=retire)
            return
        known.state = {"deleted": "deleted", "retired": "retired"}[
            self.store.delete_version(known.task, known.version, retire=retire)
        ]
        assert known.state == ("retired" if built_on else "deleted")
        if told:
            self.runner.run(self.serving.refresh())

    @rule()
    def restart(self) -> None:
        self.runner.run(self.serving.stop(5.0))
        self.store.close()
        self.store = Store.open(self.store.path)
        self.start()

    @rule()
    def notice(self) -> None:
        self.runner.run(self.serving.refresh())

    # ------------------------------------------------------------ requests

    @rule(known=versions)
    def infer(self, known: Known) -> None:
        self.runner.run(self.serving.refresh())
        if known.state == "ready":
            answer = self.runner.run(self.serving.infer(known.version, self.images))
            rig.check(known.expected, answer.logits, known.version)
        else:
            with pytest.raises(NotFound):
                self.runner.run(self.serving.infer(known.version, self.images))

    @rule()
    def infer_all_at_once(self) -> None:
        self.runner.run(self.serving.refresh())
        ready = [known for known in self.known if known.state == "ready"]

        async def ask() -> list[Any]:
            return await asyncio.gather(*(self.serving.infer(known.version, self.images) for known in ready))

        for known, answer in zip(ready, self.runner.run(ask()), strict=True):
            rig.check(known.expected, answer.logits, known.version)

    @invariant()
    def no_version_has_failed(self) -> None:
        if hasattr(self, "serving"):
            assert self.serving.stats().versions["failed"] == 0


ANY_PACE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


class TestReplica(Replica.TestCase):
    settings = settings(max_examples=8, stateful_step_count=12, **ANY_PACE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestReplicaForLong(Replica.TestCase):
    settings = settings(max_examples=200, stateful_step_count=40, **ANY_PACE)
