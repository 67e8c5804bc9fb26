"""Bodies of torchvision's kinds, small enough for a test: the networks themselves have millions of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import make_layers


class TinyVGG(nn.Module):
    """torchvision's VGG with two convolutions of 4 and 6 filters and a classifier of 10 and 8 neurons, without head.

    Its feature layers are torchvision's own; its constructor fixes the classifier's 4,096 neurons, so the rest is
    written as there. [N, 3, 8, 8] to [N, 8].
    """

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.features = make_layers([4, "M", 6, "M"], batch_norm=batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(24, 10), nn.ReLU(True), nn.Dropout(), nn.Linear(10, 8), nn.ReLU(True), nn.Dropout(), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class TinyBottlenecks(nn.Module):
    """A stem and two of torchvision's bottlenecks, the second with a stride and a shortcut: [N, 3, H, W] to [N, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.layer1, self.layer2 = Bottleneck(8, 2), Bottleneck(8, 4, stride=2, downsample=shortcut)
        self.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def _lively(body: nn.Module, seed: int = 0) -> nn.Module:
    """The body in eval mode with random weights, norms and biases."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in body.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.dim() > 1 else 4
            tensor.normal_(0.0, fan**-0.5, generator=random)
    return body.eval()


TINY: Mapping[str, Callable[[], nn.Module]] = {
    "vgg": lambda: _lively(TinyVGG(batch_norm=False)),
    "vgg_bn": lambda: _lively(TinyVGG(batch_norm=True)),
    "bottlenecks": lambda: _lively(TinyBottlenecks()),
}
"""Name -> a body of these values, made anew at each call."""


def with_head(kind: str) -> nn.Module:
    """One of `TINY` with a head of five classes where torchvision's network has its head."""
    body = TINY[kind]()
    if isinstance(body, TinyVGG):
        body.classifier[-1] = nn.Linear(8, 5)
    else:
        body.fc = nn.Linear(16, 5)
    return body
