"""Our own networks: what they compute, and the sizes that they are built for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from masks_store import FormatError, InvalidInput, build, create, packable, read_backbone
from tests.masks_store import surgery


def test_an_mlp_is_linear_layers_with_a_relu_behind_each_over_the_pixels() -> None:
    body = build("mlp-5-4", {"image_size": 8})
    state = body.state_dict()
    images = torch.randn(3, 3, 8, 8)
    hidden = torch.relu(images.reshape(3, 192) @ state["fc1.weight"].T + state["fc1.bias"])
    expected = torch.relu(hidden @ state["fc2.weight"].T + state["fc2.bias"])
    assert torch.allclose(body(images), expected, atol=1e-6)
    assert body(images).shape == (3, 4), "the features are the last hidden layer's; the head is not in the body"


def test_an_mlp_of_one_channel_reads_the_first_channel_alone() -> None:
    body = build("mlp-5", {"image_size": 8, "channels": 1})
    state = body.state_dict()
    assert state["fc1.weight"].shape == (5, 64)
    images = torch.randn(3, 3, 8, 8)
    expected = torch.relu(images[:, 0].reshape(3, 64) @ state["fc1.weight"].T + state["fc1.bias"])
    assert torch.allclose(body(images), expected, atol=1e-6)


def test_widecnn_is_four_convolutions_two_poolings_and_1024_units() -> None:
    body = build("widecnn", {"image_size": 16})
    state = body.state_dict()
    images = torch.randn(2, 3, 16, 16)
    x = images
    for i in (1, 2, 3, 4):
        x = torch.relu(F.conv2d(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], padding=1))
        x = F.max_pool2d(x, 2) if i in (2, 4) else x
    expected = torch.relu(x.reshape(2, 128 * 4 * 4) @ state["fc1.weight"].T + state["fc1.bias"])
    assert torch.allclose(body(images), expected, atol=1e-5)
    assert [tuple(w.shape[:2]) for w in packable(body).values()] == [
        (64, 3),
        (64, 64),
        (128, 64),
        (128, 128),
        (1024, 2048),
    ]


def test_both_start_as_he_et_al_draw_them() -> None:
    for name, weight in packable(build("mlp-400-300", {"image_size": 16})).items():
        fan = weight[0].numel()
        assert float(weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.03), name
    assert not any(bool(b.any()) for n, b in build("widecnn", {"image_size": 8}).named_parameters() if "bias" in n)


@pytest.mark.parametrize(("arch", "size"), [("mlp-3", 28), ("widecnn", 32), ("tinyresnet", 32)])
def test_each_has_a_size_of_its_own(arch: str, size: int) -> None:
    assert read_backbone(create(arch).data).manifest.image_size == size


def test_a_backbone_file_says_what_size_it_is_built_for() -> None:
    made = read_backbone(create("mlp-6-5", image_size=8, keep=0.5).data)
    assert made.manifest.arch_args == {"image_size": 8}
    assert made.features == 5


def test_a_backbone_whose_two_sizes_differ_is_refused() -> None:
    parts = surgery.take_apart(create("mlp-6-5", image_size=8).data)
    parts.manifest["image_size"] = 9
    parts.manifest["preprocess"] |= {"resize": 9, "size": 9}
    with pytest.raises(FormatError) as caught:
        read_backbone(parts.build())
    assert caught.value.faults == ("manifest.image_size: 9 where mlp-6-5 was built for 8",)


@pytest.mark.parametrize("arch", ["mlp", "mlp-", "mlp-0", "mlp-0-3", "mlp-5-x", "mlp-99999999999"])
def test_the_limits_of_an_mlp_are_told_with_a_name_that_is_nearly_one(arch: str) -> None:
    with pytest.raises(InvalidInput, match=f"{arch}' is not supported .an mlp has 1 to 8 hidden layers of 1 to 65,536"):
        create(arch)


@pytest.mark.parametrize("arch", ["mlp", "mlp-", "mlp-0", "mlp-5-", "mlp-5-x", "mlp-1000000", "widecnn-3"])
def test_names_that_are_nearly_right_are_refused_with_those_that_there_are(arch: str) -> None:
    with pytest.raises(InvalidInput, match=r"mlp-H1-H2… \(such as mlp-2000-2000\), widecnn"):
        create(arch)


@pytest.mark.parametrize(
    ("arch", "args", "words"),
    [
        ("mlp-3", {}, "image_size"),
        ("mlp-3", {"image_size": 7}, "from 8 to 1024"),
        ("mlp-3", {"image_size": True}, "from 8 to 1024"),
        ("mlp-3", {"image_size": 8, "channels": 2}, "3, or 1 for grey pictures"),
        ("widecnn", {"image_size": 8, "width": 2}, "width"),
        ("mlp-70000", {"image_size": 8}, "1 to 65,536 units"),
        ("mlp" + "-2" * 9, {"image_size": 8}, "1 to 8 hidden layers"),
    ],
)
def test_arguments_that_a_network_does_not_take_are_told(arch: str, args: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        build(arch, args)


def test_they_have_no_weights_to_download() -> None:
    with pytest.raises(InvalidInput, match="mlp-3 has no torchvision weights; use --weights none"):
        create("mlp-3", image_size=8, weights="torchvision")
