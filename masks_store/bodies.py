"""The networks that are our own: `tinyresnet`, `mlp-H1-H2…` and `widecnn`. They come without a head: bodies.

A body maps images [N, 3, H, W] to features [N, F]. Its weights are drawn from torch's global generator: normal with
He et al.'s deviation (arXiv 1502.01852), biases 0.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

OWN_NAMES = ("tinyresnet", "mlp-H1-H2… (such as mlp-2000-2000)", "widecnn")
"""As messages and help texts name them."""
MLP_LIMITS = "an mlp has 1 to 8 hidden layers of 1 to 65,536 units"
_MLP = re.compile(r"mlp((?:-[1-9][0-9]{0,4})+)")
_SIZES = {"tinyresnet": 32, "mlp": 28, "widecnn": 32}


def is_own(arch: str) -> bool:
    """Whether a name is one of ours."""
    return (arch in _SIZES and arch != "mlp") or _MLP.fullmatch(arch) is not None


def fixed_size(arch: str) -> bool:
    """Whether the network takes pictures of one size only, which is its argument `image_size`."""
    return is_own(arch) and arch != "tinyresnet"


def default_size(arch: str) -> int:
    """Side in pixels of the pictures that a network takes unless told otherwise; 224 for those that are not ours."""
    return _SIZES["mlp" if _MLP.fullmatch(arch) else arch] if is_own(arch) else 224


def own_body(arch: str, args: Mapping[str, Any]) -> nn.Module:
    """One of our networks.

    Args:
        arch: `is_own`.
        args: of its constructor.

    Raises:
        TypeError, ValueError: arguments that it does not take.
    """
    match = _MLP.fullmatch(arch)
    if match:
        return MLP([int(width) for width in match[1].split("-")[1:]], **args)
    return TinyResNet(**args) if arch == "tinyresnet" else WideCNN(**args)


class MLP(nn.Sequential):
    """Linear layers with a ReLU behind each, over a picture's pixels in one row.

    The body is all hidden layers: the features are what the last of them gives after its ReLU. The head is the linear
    layer to the classes. A pixel has three values, so the first layer reads 3 * image_size^2 of them, channel by
    channel: grey pictures come as three equal channels.

    Args:
        widths: units of each hidden layer.
        image_size: side of the pictures, 8 to 1024.
        channels: 3; or 1 for grey pictures, of which the first channel alone is read: image_size^2 values.
    """

    def __init__(self, widths: Iterable[int], *, image_size: int, channels: int = 3) -> None:
        widths = list(widths)
        _check_size(image_size)
        if type(channels) is not int or channels not in (1, 3):
            raise ValueError(f"channels {channels!r} must be 3, or 1 for grey pictures")
        if not 1 <= len(widths) <= 8 or not all(1 <= width <= 1 << 16 for width in widths):
            raise ValueError(MLP_LIMITS)
        steps: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten() if channels == 3 else FirstChannel())
        for i, (inputs, width) in enumerate(zip([channels * image_size**2, *widths], widths, strict=False), 1):
            steps[f"fc{i}"], steps[f"relu{i}"] = nn.Linear(inputs, width), nn.ReLU()
        super().__init__(steps)
        _draw(self)


class FirstChannel(nn.Module):
    """The first channel of grey pictures, whose three are equal, in one row."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, H * W]."""
        return x.narrow(1, 0, 1).flatten(1)


class WideCNN(nn.Sequential):
    """Four 3x3 convolutions of 64, 64, 128 and 128 filters, 2x2 max pooling behind each two, 1024 linear units.

    The network that a third-party version of CLNP trains on CIFAR (METHODS §3). No norm, no dropout. The body ends
    behind the ReLU of the 1024 units; the head is the linear layer to the classes.

    Args:
        image_size: side of the pictures, 8 to 1024.
    """

    def __init__(self, *, image_size: int) -> None:
        _check_size(image_size)
        steps: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inputs, width) in enumerate(((3, 64), (64, 64), (64, 128), (128, 128)), 1):
            steps[f"conv{i}"], steps[f"relu{i}"] = nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()
            if i % 2 == 0:
                steps[f"pool{i // 2}"] = nn.MaxPool2d(2)
        steps |= {"flatten": nn.Flatten(), "fc1": nn.Linear(128 * (image_size // 4) ** 2, 1024), "relu5": nn.ReLU()}
        super().__init__(steps)
        _draw(self)


def _check_size(image_size: int) -> None:
    if type(image_size) is not int or not 8 <= image_size <= 1024:
        raise ValueError(f"image_size {image_size!r} must be a whole number from 8 to 1024")


def _draw(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None, "every layer here has a bias"
            nn.init.zeros_(module.bias)


class TinyResNet(nn.Module):
    """A residual network for pictures of 8 to 64 pixels: a 3x3 stem and basic blocks, the width doubling per stage.

    He et al., arXiv 1512.03385 §4.2 (CIFAR): no pooling behind the stem; the shortcut is a strided 1x1 convolution.

    Args:
        width: channels of the stem and the first stage.
        blocks: number of basic blocks of each stage.
    """

    def __init__(self, width: int = 32, blocks: Iterable[int] = (1, 1, 1)) -> None:
        super().__init__()
        blocks = list(blocks)
        if not 1 <= width <= 512 or not 1 <= len(blocks) <= 5 or not all(1 <= n <= 32 for n in blocks):
            raise ValueError("width must be 1 to 512, blocks 1 to 5 numbers of 1 to 32")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            units = [BasicBlock(channels if i == 0 else out, out, 2 if i == 0 and stage else 1) for i in range(count)]
            stages.append(nn.Sequential(*units))
            channels = out
        self.layers = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to features [N, F]."""
        x = F.relu(self.bn1(self.conv1(x)))  # [N, width, H, W]
        x = self.layers(x)  # [N, width * 2^(stages - 1), H / 2^(stages - 1), …]
        return x.mean((2, 3))  # [N, features]


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x)), He et al. fig. 5 left."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, out, H / stride, W / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))
