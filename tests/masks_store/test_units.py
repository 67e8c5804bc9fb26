"""Which units a network has: groups over residual streams, readers, norms, and what is refused by name."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from masks_store import InvalidInput, UnitGraph, build, cut, norm_modules, packable, unit_graph

from ..tiny import TINY


def graph(arch: str, **args: object) -> UnitGraph:
    with torch.device("meta"):
        return unit_graph(build(arch, args), arch)


def members(found: UnitGraph, group: str) -> list[str]:
    return [layer for layer, part in found.layers.items() if part.group == group]


def test_the_units_of_an_mlp_are_its_hidden_layers() -> None:
    found = graph("mlp-5-4-3", image_size=8)
    assert dict(found.sizes) == {"fc1": 5, "fc2": 4, "fc3": 3}
    assert [part.reads for part in found.layers.values()] == [None, "fc1", "fc2"]
    assert found.features == "fc3"


def test_a_grey_mlp_has_the_units_of_any_other() -> None:
    found = graph("mlp-5-4", image_size=8, channels=1)
    assert dict(found.sizes) == {"fc1": 5, "fc2": 4}
    assert [part.reads for part in found.layers.values()] == [None, "fc1"]


def test_a_flattened_map_gives_its_reader_as_many_inputs_per_unit_as_it_has_positions() -> None:
    assert [part.spread for part in graph("widecnn", image_size=12).layers.values()] == [1, 1, 1, 1, 9]
    assert graph("vgg11").layers["classifier.0"].spread == 49
    assert graph("vgg11").layers["classifier.3"].spread == 1


def test_the_columns_of_a_flattened_unit_are_all_its_positions() -> None:
    found = graph("widecnn", image_size=8)  # 2 x 2 positions
    used = {group: torch.zeros(size, dtype=torch.bool) for group, size in found.sizes.items()}
    used["conv4"][[0, 5]] = True
    columns = found.columns("fc1", used, 512)
    assert columns.nonzero().flatten().tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert found.columns("conv1", used, 3).tolist() == [True] * 3, "the picture always counts as active"


def test_a_stage_of_a_resnet_is_one_group_over_stem_or_shortcut_and_every_blocks_last_convolution() -> None:
    found = graph("resnet18")
    assert members(found, "conv1") == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert members(found, "layer2.0.conv2") == ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    assert members(found, "layer2.1.conv1") == ["layer2.1.conv1"]
    assert found.layers["layer2.0.downsample.0"].reads == "conv1"
    assert found.layers["layer2.1.conv1"].reads == "layer2.0.conv2"
    assert found.norms["layer2.0.downsample.1"] == "layer2.0.conv2"
    assert found.features == "layer4.0.conv2"


def test_a_bottleneck_has_two_groups_of_its_own_and_one_of_the_stage() -> None:
    found = graph("resnet50")
    stream = "layer1.0.conv3"
    assert members(found, stream) == [
        "layer1.0.conv3",
        "layer1.0.downsample.0",
        "layer1.1.conv3",
        "layer1.2.conv3",
    ]
    assert [found.layers[f"layer1.1.conv{i}"].reads for i in (1, 2, 3)] == [stream, "layer1.1.conv1", "layer1.1.conv2"]


@pytest.mark.parametrize(
    ("arch", "args"),
    [("resnet18", {}), ("resnet50", {}), ("vgg11_bn", {}), ("vgg11", {}), ("tinyresnet", {"blocks": [1, 2, 1]})],
)
def test_every_layer_norm_and_group_is_there_once_and_every_group_has_its_relus(
    arch: str, args: dict[str, object]
) -> None:
    found = graph(arch, **args)
    with torch.device("meta"):
        body = build(arch, args)
    assert [f"{layer}.weight" for layer in found.layers] == list(packable(body))
    assert found.norms.keys() == norm_modules(body).keys()
    behind = Counter(part.norm for part in found.layers.values() if part.norm)
    assert behind == Counter(list(found.norms)), "each norm stands behind one layer"
    assert {part.group for part in found.layers.values()} == set(found.sizes) == set(found.relus.values())
    for layer, part in found.layers.items():
        assert packable(body)[f"{layer}.weight"].shape[0] == found.sizes[part.group]
    for norm, group in found.norms.items():
        assert norm_modules(body)[norm].num_features == found.sizes[group]


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("densenet121", "clnp does not support densenet121.*'cat'"),
        ("mobilenet_v2", "clnp does not support mobilenet_v2.*ReLU6.*32 groups"),
        ("resnext50_32x4d", "clnp does not support resnext50_32x4d.*layer1.0.conv2: a convolution of 32 groups"),
        ("efficientnet_b0", "clnp does not support efficientnet_b0"),
    ],
)
def test_what_mixes_channels_in_other_ways_is_refused_by_name_with_what_is_supported(arch: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words + ".*It supports mlp-H1-H2…, widecnn, tinyresnet"):
        graph(arch)


def test_a_layer_without_a_relu_has_no_activity_and_is_refused() -> None:
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInput, match="3: no ReLU follows"):
        unit_graph(body, "two")


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InvalidInput, match="cannot be traced"):
        unit_graph(Odd(), "odd")


# ---------------------------------------------------------------- cutting

_CLASSIFIER = {"classifier.0": "classifier.0", "classifier.3": "classifier.3"}
SILENCED = {
    "vgg": {"features.0": "features.0", "features.3": "features.3", **_CLASSIFIER},
    "vgg_bn": {"features.1": "features.0", "features.5": "features.4", **_CLASSIFIER},
    "bottlenecks": {
        "bn1": "conv1",
        "layer1.bn1": "layer1.conv1",
        "layer1.bn2": "layer1.conv2",
        "layer1.bn3": "conv1",
        "layer2.bn1": "layer2.conv1",
        "layer2.bn2": "layer2.conv2",
        "layer2.bn3": "layer2.conv3",
        "layer2.downsample.1": "layer2.conv3",
    },
}
"""Network -> module behind which a group's units are silenced, each norm or, without one, each layer -> the group."""


@pytest.mark.parametrize("kind", TINY)
def test_a_network_cut_to_some_units_gives_what_the_whole_one_gives_with_the_others_multiplied_by_0(kind: str) -> None:
    """Which module belongs to which group is said here by hand, and not taken from the graph under test."""
    body, random = TINY[kind](), torch.Generator().manual_seed(1)
    found = unit_graph(body, kind)
    used = {group: torch.arange(size) % 3 != 0 for group, size in found.sizes.items()}
    images = torch.randn(5, 3, 8, 8, generator=random)
    assert set(SILENCED[kind].values()) == set(used)
    assert all(mask.any() and not mask.all() for mask in used.values())
    with torch.no_grad():
        small = functional_call(body, cut(found, body.state_dict(), used), (images,))
        whole = body(images)
        for name, group in SILENCED[kind].items():
            body.get_submodule(name).register_forward_hook(partial(_silence, used[group]))
        expected = body(images)
    features = used[found.features]
    assert torch.allclose(small, expected[:, features], atol=1e-5)
    assert not expected[:, ~features].any()
    assert not torch.allclose(whole[:, features], small, atol=1e-2), "what was cut off was used"


def _silence(mask: Tensor, module: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out * mask.view(1, -1, *(1 for _ in out.shape[2:]))
