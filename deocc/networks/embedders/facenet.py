"""Inception-ResNet v1, FaceNet's usual backbone: 160 x 160 RGB -> 512 numbers.

Names follow facenet-pytorch, whose `.pt` files (VGGFace2, CASIA-WebFace) therefore load as they are; that package is not needed.

[0] Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", AAAI 2017.
[1] github.com/timesler/facenet-pytorch (MIT): names, and widths where its trained networks differ from [0].
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.embedders.spec import EmbedderSpec, Recogniser
from deocc.networks.weights import find_weights, load_weights, read_state_dict

# [1]'s "fixed image standardization".
SPEC = EmbedderSpec("facenet", 160, mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0))

Kernel = int | tuple[int, int]


def _conv(before: int, after: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel = 0) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
    # The epsilon is TensorFlow's, where the published weights were trained.
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after, eps=1e-3), relu=nn.ReLU()))


class Branches(nn.Module):
    """Networks side by side, their channels concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        """Names them branch0, branch1 and so on."""
        super().__init__()
        self.count = len(branches)
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of the branches' channels, H', W')."""
        return torch.cat([self.get_submodule(f"branch{number}")(features) for number in range(self.count)], 1)


class ResidualBranches(Branches):
    """`x + scale * conv(branches(x))`, then ReLU unless it is the network's last block [0]."""

    def __init__(self, channels: int, inner: int, scale: float, *branches: nn.Module, relu: bool = True) -> None:
        """`inner` is the sum of the branches' channels; (B, channels, H, W) stays of that shape."""
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(inner, channels, 1)
        self.scale = scale
        self.rectify = relu

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        total = features + self.scale * self.conv2d(super().forward(features))
        return F.relu(total) if self.rectify else total


def _block35() -> ResidualBranches:
    three = nn.Sequential(_conv(256, 32), _conv(32, 32, 3, padding=1), _conv(32, 32, 3, padding=1))
    return ResidualBranches(
        256, 96, 0.17, _conv(256, 32), nn.Sequential(_conv(256, 32), _conv(32, 32, 3, padding=1)), three
    )


def _block17() -> ResidualBranches:
    cross = nn.Sequential(
        _conv(896, 128), _conv(128, 128, (1, 7), padding=(0, 3)), _conv(128, 128, (7, 1), padding=(3, 0))
    )
    return ResidualBranches(896, 256, 0.10, _conv(896, 128), cross)


def _block8(scale: float = 0.20, relu: bool = True) -> ResidualBranches:
    cross = nn.Sequential(
        _conv(1792, 192), _conv(192, 192, (1, 3), padding=(0, 1)), _conv(192, 192, (3, 1), padding=(1, 0))
    )
    return ResidualBranches(1792, 384, scale, _conv(1792, 192), cross, relu=relu)


def _reduction_a() -> Branches:
    deep = nn.Sequential(_conv(256, 192), _conv(192, 192, 3, padding=1), _conv(192, 256, 3, 2))
    return Branches(_conv(256, 384, 3, 2), deep, nn.MaxPool2d(3, 2))


def _reduction_b() -> Branches:
    wide = nn.Sequential(_conv(896, 256), _conv(256, 384, 3, 2))
    narrow = nn.Sequential(_conv(896, 256), _conv(256, 256, 3, 2))
    deep = nn.Sequential(_conv(896, 256), _conv(256, 256, 3, padding=1), _conv(256, 256, 3, 2))
    return Branches(wide, narrow, deep, nn.MaxPool2d(3, 2))


class InceptionResNetV1(nn.Module):
    """The network without its classifier and without the final normalisation to unit length."""

    def __init__(self, dropout: float = 0.6) -> None:
        """Build it with random weights; `dropout` is the probability before the last linear layer [1]."""
        super().__init__()
        self.conv2d_1a = _conv(3, 32, 3, 2)
        self.conv2d_2a = _conv(32, 32, 3)
        self.conv2d_2b = _conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = _conv(64, 80)
        self.conv2d_4a = _conv(80, 192, 3)
        self.conv2d_4b = _conv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = _reduction_a()
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = _reduction_b()
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(scale=1.0, relu=False)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `SPEC`, H, W >= 75 -> (B, 512)."""
        features = image
        for stage in self._stages():
            features = stage(features)
        embedding: Tensor = self.last_bn(self.last_linear(self.dropout(features.mean((2, 3)))))
        return embedding

    def parts(self) -> list[nn.Module]:
        """The named stages in forward order, then the head."""
        return [*self._stages(), nn.Sequential(self.last_linear, self.last_bn)]

    def _stages(self) -> list[nn.Module]:
        """Everything before the head: modules are registered, and lie, in forward order."""
        return [stage for name, stage in self.named_children() if name not in ("dropout", "last_linear", "last_bn")]


def build(name: str, weights: str | None, pretrained: bool) -> Recogniser:
    """The network with the weights of a file as facenet-pytorch publishes them, or with random ones where `weights` is None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds another network.
    """
    network = InceptionResNetV1()
    if weights is not None:
        releases = "get 20180402-114759-vggface2.pt from the releases of github.com/timesler/facenet-pytorch"
        path = find_weights(weights, releases)
        load_weights(network, read_state_dict(path), path, ignored=("logits.",))
    return Recogniser(network, SPEC, pretrained=weights is not None)
