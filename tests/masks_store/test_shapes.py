"""Networks without numbers: the shapes are those of a real forward, and torch's compiler stays out of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from masks_store import build
from masks_store.shapes import shapes_of, without_numbers

NETWORKS = [
    ("tinyresnet", {"width": 4}, 20),
    ("mlp-9-7", {"image_size": 8}, 8),
    ("widecnn", {"image_size": 16}, 16),
    ("resnet18", {}, 70),
    ("resnext50_32x4d", {}, 33),
    ("vgg11", {}, 64),
    ("vgg11_bn", {}, 40),
    ("mobilenet_v2", {}, 64),
    ("densenet121", {}, 65),
    ("efficientnet_b0", {}, 64),
]


@pytest.mark.parametrize(("arch", "args", "size"), NETWORKS, ids=[arch for arch, _, _ in NETWORKS])
def test_shapes_are_those_of_a_forward(arch: str, args: dict[str, int], size: int) -> None:
    with torch.random.fork_rng():
        body = build(arch, args)
    read: dict[str, tuple[int, ...]] = {}
    for name, module in body.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda _m, given, _out, name=name: read.update({name: given[0].shape[1:]}))
    with torch.no_grad():
        features = body(torch.zeros(1, 3, size, size)).shape[1]
    with without_numbers():
        shadow = build(arch, args)
    for network in (body, shadow):
        found = shapes_of(network, size)
        assert dict(found.inputs) == read
        assert found.features == features


def test_measuring_leaves_the_network_as_it_was() -> None:
    body = build("tinyresnet", {"width": 4})
    images = torch.rand(2, 3, 16, 16)
    before = body(images)
    shapes_of(body, 16)
    assert torch.equal(body(images), before)


@pytest.mark.parametrize(
    ("arch", "args", "size", "words"),
    [
        ("mlp-5", {"image_size": 8}, 9, "fc1 reads 192 numbers where there are 243"),
        ("vgg11_bn", {}, 16, "[Oo]utput size is too small"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_told(arch: str, args: dict[str, int], size: int, words: str) -> None:
    with without_numbers():
        body = build(arch, args)
    with pytest.raises(RuntimeError, match=words):
        shapes_of(body, size)


def test_without_numbers_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with without_numbers():
        body = build("densenet121")
    assert torch.equal(torch.get_rng_state(), before)
    assert {tensor.device.type for tensor in body.state_dict().values()} == {"meta"}
    assert {n: t.shape for n, t in body.state_dict().items()} == {
        n: t.shape for n, t in build("densenet121").state_dict().items()
    }


def ran(code: str, *arguments: str) -> str:
    """What a program prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_network_needs_the_compiler_to_be_built_or_measured() -> None:
    code = f"""
import sys
from masks_store import build
from masks_store.shapes import shapes_of, without_numbers
for arch, args, size in {NETWORKS!r}:
    with without_numbers():
        body = build(arch, args)
    shapes_of(body, size)
print(sorted(name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules))
"""
    assert ran(code) == "[]"


def test_several_threads_may_ask_for_torchvision_at_once() -> None:
    code = """
import sys, threading
from masks_store.shapes import torchvision_models
barrier, found = threading.Barrier(5), []
def ask(of):
    barrier.wait()
    found.append(of())
def compiler():
    import torch._dynamo.utils
    return torch._dynamo.utils.counters
asking = [threading.Thread(target=ask, args=(of,)) for of in (*[torchvision_models] * 4, compiler)]
for one in asking: one.start()
for one in asking: one.join()
import torch._dynamo.utils
print(len(found), {type(one).__name__ for one in found} == {"module", "defaultdict"})
print(torch._dynamo.utils is sys.modules["torch._dynamo.utils"], len(vars(torch._dynamo.utils)) > 100)
"""
    assert ran(code).splitlines() == ["5 True", "True True"]


def test_torchvision_comes_without_the_compiler_and_gets_it_when_it_asks() -> None:
    code = """
import sys
from masks_store.shapes import torchvision_models
assert torchvision_models().resnet18 is not None
print("torch._dynamo" in sys.modules, "torch._dynamo.utils" in sys.modules)
roi_align = sys.modules["torchvision.ops.roi_align"]
found = roi_align.is_compile_supported("cpu")
import torch._dynamo.utils
print(found == torch._dynamo.utils.is_compile_supported("cpu"), len(vars(torch._dynamo.utils)) > 100)
"""
    assert ran(code).splitlines() == ["False False", "True True"]


def test_another_torchvision_may_ask_the_compiler_for_more() -> None:
    code = """
import sys
from importlib import import_module
import masks_store.shapes as shapes
def other(name):
    from torch._dynamo.utils import counters, is_compile_supported
    print(type(counters).__name__, is_compile_supported.__module__)
    return import_module(name)
shapes.import_module = lambda name: other(name) if name == "torchvision.models" else import_module(name)
shapes.torchvision_models()
import torch._dynamo.utils
print(torch._dynamo.utils is sys.modules["torch._dynamo.utils"], hasattr(torch._dynamo.utils, "counters"))
"""
    first, second = ran(code).splitlines()
    assert first.startswith("defaultdict ")
    assert second == "True True"
