"""Backbone files: what is kept, what is freed, what is refused, and the counts that the papers give."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from masks_store import (
    BackboneFile,
    FormatError,
    InvalidInput,
    adapter_sites,
    build,
    create,
    digest_of,
    norm_modules,
    packable,
    read_backbone,
)
from tests import zoo


def test_the_same_seed_gives_the_same_file_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    files = [zoo.backbone_bytes(seed=5) for _ in range(2)]
    assert files[0] == files[1]
    assert torch.equal(torch.rand(2), expected)
    assert zoo.backbone_bytes(seed=6) != files[0]


def test_half_of_every_layer_is_kept_and_it_is_the_larger_half() -> None:
    dense = create("tinyresnet", image_size=16, keep=1.0, arch_args={"width": 4})
    backbone = zoo.backbone(keep=0.5)
    whole = read_backbone(dense.data)
    for name, kept in backbone.kept.items():
        assert int(kept.sum()) == kept.numel() // 2
        magnitude = whole.tensors[name].abs()
        assert magnitude[kept].min() >= magnitude[~kept].max()
        assert torch.equal(backbone.tensors[name][kept], whole.tensors[name][kept])
        assert not backbone.tensors[name][~kept].any()


def test_keep_one_has_nothing_free_and_keep_zero_everything() -> None:
    assert all(kept.all() for kept in zoo.backbone(keep=1.0).kept.values())
    empty = zoo.backbone(keep=0.0)
    assert not any(kept.any() for kept in empty.kept.values())
    assert not any(empty.tensors[name].any() for name in empty.kept)


def test_the_dense_weights_are_kept_as_the_source() -> None:
    made = create("tinyresnet", image_size=16, keep=0.5, arch_args={"width": 4})
    assert made.source is not None
    assert read_backbone(made.data).manifest.source == digest_of(made.source)
    assert made.source == create("tinyresnet", image_size=16, keep=1.0, arch_args={"width": 4}).data


@pytest.mark.parametrize(("half", "head"), [(False, True), (True, False)])
def test_a_state_dict_with_or_without_its_head_loads(tmp_path: Path, half: bool, head: bool) -> None:
    network = torchvision.models.resnet18()
    state = {n: t.half() if half and t.is_floating_point() else t for n, t in network.state_dict().items()}
    state = {n: t for n, t in state.items() if head or not n.startswith("fc.")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    backbone = read_backbone(create("resnet18", weights=tmp_path / "w.safetensors", image_size=32).data)
    assert torch.equal(backbone.tensors["conv1.weight"], state["conv1.weight"].float())
    assert backbone.features == 512


def _saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def _tiny(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build("tinyresnet", {"width": 4}).state_dict())


def _made(file: Path) -> BackboneFile:
    return create("tinyresnet", weights=file, image_size=16, arch_args={"width": 4})


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q.", "encoder_q.", "some.training.net."])
def test_a_common_prefix_of_all_names_is_stripped_and_told(tmp_path: Path, prefix: str) -> None:
    state = _tiny(1)
    made = _made(_saved(tmp_path, {prefix + name: tensor for name, tensor in state.items()}))
    assert read_backbone(made.data).tensors["conv1.weight"].equal(state["conv1.weight"])
    (note,) = made.notes
    assert note == f"{tmp_path / 'w.safetensors'}: the prefix {prefix!r} of its names was stripped"
    plain = _made(_saved(tmp_path, state))
    assert plain.notes == ()
    assert plain.data == made.data


def test_the_encoder_that_moco_trains_is_taken_and_the_rest_of_its_file_left_out(tmp_path: Path) -> None:
    trained, momentum = _tiny(1), _tiny(2)
    file = {f"module.encoder_q.{name}": tensor for name, tensor in trained.items()}
    file |= {f"module.encoder_k.{name}": tensor for name, tensor in momentum.items()}
    file |= {"module.queue": torch.zeros(4, 9), "module.encoder_q.fc.0.weight": torch.zeros(3, 16)}
    file |= {"module.encoder_q.fc.2.bias": torch.zeros(3)}
    made = _made(_saved(tmp_path, file))
    assert read_backbone(made.data).tensors["conv1.weight"].equal(trained["conv1.weight"])
    (note,) = made.notes
    assert "'module.encoder_q.' of its names was stripped" in note
    assert f"{len(momentum) + 1} tensors outside of it were left out (module.encoder_k.bn1.bias" in note
    assert "its head was left out (fc.0.weight, fc.2.bias)" in note


def test_two_networks_in_one_file_are_refused_by_their_prefixes(tmp_path: Path) -> None:
    file = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in _tiny().items()}
    with pytest.raises(InvalidInput, match=r"holds 2 networks, under student\., teacher\."):
        _made(_saved(tmp_path, file))


def test_faults_under_a_prefix_are_told_by_name(tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in _tiny().items()}
    del state["backbone.conv1.weight"]
    state["backbone.stranger"] = torch.ones(1)
    with pytest.raises(InvalidInput, match=r"not the weights of tinyresnet under 'backbone\.'") as caught:
        _made(_saved(tmp_path, state))
    assert caught.value.faults == ("conv1.weight: missing", "stranger: the network has no such tensor")


def test_a_head_of_another_kind_is_left_out_only_where_the_body_ends(tmp_path: Path) -> None:
    made = _made(_saved(tmp_path, {**_tiny(), "projector.0.weight": torch.ones(2, 2)}))
    assert "its head was left out (projector.0.weight)" in made.notes[0]
    with pytest.raises(InvalidInput) as caught:
        _made(_saved(tmp_path, {**_tiny(), "layers.projector.weight": torch.ones(2, 2)}))
    assert caught.value.faults == ("layers.projector.weight: the network has no such tensor",)


def test_weights_of_another_network_are_refused_with_every_fault(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    del state["conv1.weight"]
    state["bn1.weight"] = torch.ones(3)
    state["bn1.bias"] = torch.full((64,), float("nan"))
    state["stranger"] = torch.ones(1)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput) as caught:
        create("resnet18", weights=tmp_path / "w.safetensors")
    faults = "\n".join(caught.value.faults)
    assert "conv1.weight: missing" in faults
    assert "bn1.weight: [3] where [64] was expected" in faults
    assert "bn1.bias: holds NaN" in faults
    assert "stranger: the network has no such tensor" in faults


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "vit_b_16"}, "not supported"),
        ({"arch": "resnet18", "image_size": 7, "keep": 1.5}, "7 must be.*1.5 must be"),
        ({"arch": "resnet18", "keep": 0.0, "weights": "torchvision"}, "thrown away"),
        ({"arch": "resnet18", "weights": Path("nowhere.safetensors")}, "no such file"),
        ({"arch": "resnet18", "weights": Path("/tmp")}, "/tmp: is a directory; --weights takes"),
        ({"arch": "resnet18", "weights": Path("/dev/null")}, "/dev/null: is no file; --weights takes"),
        (
            {"arch": "resnet19", "keep": 2.0, "image_size": 3, "weights": Path("nowhere.safetensors")},
            "(?s)'resnet19' is not supported.*3 must be.*2.0 must be.*no such file",
        ),
        ({"arch": "vgg11_bn", "image_size": 16}, "cannot take pictures of 16 pixels"),
        ({"arch": "tinyresnet", "arch_args": {"widht": 3}}, "does not take the arguments"),
    ],
)
def test_wrong_arguments_are_told_with_the_mend(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        create(**arguments)  # pyright: ignore[reportArgumentType]


def test_a_free_weight_that_is_not_zero_is_refused() -> None:
    data = zoo.backbone_bytes(keep=0.0)
    tensors = safetensors.torch.load(data)
    tensors["conv1.weight"][0, 0, 0, 0] = 1.0
    with safetensors.safe_open(_written(data), "pt") as file:
        metadata = file.metadata()
    with pytest.raises(FormatError, match="fault") as caught:
        read_backbone(safetensors.torch.save(tensors, metadata))
    assert caught.value.faults == ("conv1.weight: a free weight is not 0",)


def _written(data: bytes) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".safetensors", delete=False) as file:
        file.write(data)
    return file.name


def counts(arch: str) -> tuple[int, int, int]:
    """Parameters of the body, of the adapters, of scale and shift."""
    body = build(arch)
    adapters = sum(9 * conv.out_channels for conv in adapter_sites(body).values())
    norms = sum(2 * norm.num_features for norm in norm_modules(body).values())
    return sum(p.numel() for p in body.parameters()), adapters, norms


def test_resnet50_has_the_counts_of_the_clr_paper() -> None:
    body, adapters, norms = counts("resnet50")
    assert body == 23_508_032
    assert adapters == 34_560
    assert adapters + norms == 87_680
    assert adapters + 2 * norms == 140_800


def test_resnet18_has_the_counts_of_the_clr_paper() -> None:
    _, adapters, norms = counts("resnet18")
    assert adapters + 2 * norms == 54_336


def test_every_convolution_and_linear_layer_can_be_owned_but_not_the_head() -> None:
    with torch.device("meta"):
        names = packable(build("vgg11_bn"))
    assert len([n for n in names if n.startswith("features")]) == 8
    assert [n for n in names if n.startswith("classifier")] == ["classifier.0.weight", "classifier.3.weight"]
