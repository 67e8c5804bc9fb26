"""One pass behind the convolutions for a batch of any mix gives what the reference gives; what is wrong is not used.

On the CPU Triton's interpreter runs the kernels; it cuts bfloat16 off where a GPU rounds.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from service.engine.stages import Recorded
from service.engine.ways import Ways

from .. import zoo
from ..service import rig

pytest.importorskip("triton")
from service.engine.gpu import checks, operators
from service.engine.gpu.masking import write_view

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CPU = DEVICE.type == "cpu"
ALL = Ways(masking=write_view, kernels=operators.KERNELS, capture=(lambda work, stream: Recorded(work, 0)))
MIXED = [kind for kind in rig.KINDS if kind[0] in {"clr-a", "clr-b", "bn", "linear", "packnet", "clr-on-packnet"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["pixels", "epilogue", "rows", "heads"])
def test_the_kernels_pass_the_checks_of_the_start(what: str, dtype: torch.dtype) -> None:
    assert getattr(checks._Case(DEVICE, dtype), what)()


def test_writing_a_view_passes_the_check_of_the_start() -> None:
    assert checks.masking_agrees(DEVICE)


def test_a_kernel_that_is_wrong_or_cannot_be_built_is_not_used_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing_written(*_given: object) -> None:
        return None

    def no_compiler(*_given: object) -> torch.Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(checks, "write_view", nothing_written)
    monkeypatch.setattr(checks, "KERNELS", replace(operators.KERNELS, pixels=no_compiler))
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        ways = checks.checked(DEVICE)
    assert (ways.masking, ways.kernels) == (None, None)
    assert ways.capture is not None
    assert ["other numbers" in caplog.messages[0], "no compiler" in caplog.messages[1]] == [True, True]
    assert len(caplog.records) == 2


def test_tasks_of_one_batch_answer_as_their_references_and_those_alone() -> None:
    """One batch of clr, bn and a task without either; packnet's view is written in one launch."""
    backbone = zoo.backbone(keep=0.5, size=8)
    made = rig.rig(backbone, MIXED, device=str(DEVICE), ways=ALL if ON_CPU else None, graph_bytes=1 << 30, onednn=False)
    pictures = {name: rig.pictures(made.backbone, 1, seed) for seed, name in enumerate(made.tasks)}
    rows = {name for name, task in made.loaded.items() if task.row is not None}
    assert rows == {"clr-a", "clr-b", "bn", "clr-on-packnet"}
    for names in (["clr-a", "bn", "clr-b"], ["clr-on-packnet"], ["packnet"]):
        for name, got in zip(names, made.run(names, [pictures[name] for name in names]), strict=True):
            expected = rig.reference(made.backbone, made.tasks[name], pictures[name])
            rig.check(expected, got, f"{name} among {names}")
