"""What a server brings into memory: nothing of torch's compiler, which costs 90 MB and more than a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from masks_store import Store, create, read_artifact

from .. import zoo

SERVED = """
import asyncio, sys
from pathlib import Path
from masks_store import Store
from tests.service.web import running

async def main():
    store = Store.open(Path(sys.argv[1]))
    async with running(store) as web:
        for task in ("birds", "plants", "leaves"):
            await web.predict(task)
        answer = await web.register(Path(sys.argv[2]).read_bytes())
        assert answer.status_code == 201, answer.text
        await web.predict("late")
    store.close()

asyncio.run(main())
print(sorted({"torchvision", "torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_a_server_that_answers_and_registers_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", create("resnet18", image_size=32, keep=0.5, seed=0))
    plants = zoo.task(store.backbone, "plants", "packnet")
    store.register(zoo.task(store.backbone, "birds", "clr"))
    store.register(plants)
    store.register(zoo.task(store.backbone, "leaves", "linear", ancestors=[read_artifact(plants)]))
    late = tmp_path / "late.safetensors"
    late.write_bytes(zoo.task(store.backbone, "late", "packnet", taken=list(store.claims().values()), seed=1))
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", SERVED, str(tmp_path / "store"), str(late)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "['torchvision']"
