"""Inception-ResNet v1, the common backbone of FaceNet: 160 x 160 RGB to 512 dimensions.

Names follow facenet-pytorch, whose weights files (VGGFace2, CASIA-WebFace) load directly, without that package.

[0] Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", AAAI 2017.
[1] github.com/timesler/facenet-pytorch (MIT): names, and channel numbers where its networks differ from [0].
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights, load_weights, read_state_dict

# "Fixed image standardization" of [1].
SPEC = EmbedderSpec("facenet", 160, mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0))

Size = int | tuple[int, int]


class Branches(nn.Module):
    """Parallel networks named branch0, branch1, ..., whose outputs are concatenated over channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.count = len(branches)
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, sum of the branches' channels, H', W')."""
        return torch.cat([self.get_submodule(f"branch{number}")(features) for number in range(self.count)], 1)


class ResidualBranches(Branches):
    """x + scale * conv(branches(x)), followed by ReLU except in the network's last block [0].

    Input and output have `channels` channels, the branches together have `inner`.
    """

    def __init__(self, channels: int, inner: int, scale: float, *branches: nn.Module, relu: bool = True) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(inner, channels, 1)
        self.scale = scale
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        total = features + self.scale * self.conv2d(super().forward(features))
        return F.relu(total) if self.relu else total


def _conv(before: int, after: int, kernel: Size = 1, stride: int = 1, padding: Size = 0) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
    # Epsilon of TensorFlow, in which the published weights were trained.
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after, eps=1e-3), relu=nn.ReLU()))


def _block35() -> ResidualBranches:
    three = nn.Sequential(_conv(256, 32), _conv(32, 32, 3, padding=1), _conv(32, 32, 3, padding=1))
    one, two = _conv(256, 32), nn.Sequential(_conv(256, 32), _conv(32, 32, 3, padding=1))
    return ResidualBranches(256, 96, 0.17, one, two, three)


def _asymmetric_block(channels: int, width: int, kernel: int, scale: float, relu: bool = True) -> ResidualBranches:
    """Block with a 1 x 1 branch and a branch of 1 x `kernel` and `kernel` x 1 convolutions (block17 and block8)."""
    pad = kernel // 2
    cross = nn.Sequential(
        _conv(channels, width),
        _conv(width, width, (1, kernel), padding=(0, pad)),
        _conv(width, width, (kernel, 1), padding=(pad, 0)),
    )
    return ResidualBranches(channels, 2 * width, scale, _conv(channels, width), cross, relu=relu)


class InceptionResNetV1(nn.Module):
    """Inception-ResNet v1 without classifier and without the final normalisation to unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = _conv(3, 32, 3, 2)
        self.conv2d_2a = _conv(32, 32, 3)
        self.conv2d_2b = _conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = _conv(64, 80)
        self.conv2d_4a = _conv(80, 192, 3)
        self.conv2d_4b = _conv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Branches(
            _conv(256, 384, 3, 2),
            nn.Sequential(_conv(256, 192), _conv(192, 192, 3, padding=1), _conv(192, 256, 3, 2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_2 = nn.Sequential(*(_asymmetric_block(896, 128, 7, 0.10) for _ in range(10)))
        self.mixed_7a = Branches(
            nn.Sequential(_conv(896, 256), _conv(256, 384, 3, 2)),
            nn.Sequential(_conv(896, 256), _conv(256, 256, 3, 2)),
            nn.Sequential(_conv(896, 256), _conv(256, 256, 3, padding=1), _conv(256, 256, 3, 2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_3 = nn.Sequential(*(_asymmetric_block(1792, 192, 3, 0.20) for _ in range(5)))
        self.block8 = _asymmetric_block(1792, 192, 3, 1.0, relu=False)
        self.dropout = nn.Dropout(0.6)  # [1]
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W), normalised according to `SPEC`, H, W >= 75, to (B, 512)."""
        features = image
        for stage in self._stages():
            features = stage(features)
        embedding: Tensor = self.last_bn(self.last_linear(self.dropout(features.mean((2, 3)))))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Return the named stages in forward order, then the head."""
        return [*self._stages(), nn.Sequential(self.last_linear, self.last_bn)]

    def _stages(self) -> list[nn.Module]:
        """Return everything before the head; modules are registered in forward order."""
        return [stage for name, stage in self.named_children() if name not in ("dropout", "last_linear", "last_bn")]


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Build the network with the weights of a facenet-pytorch file, or random ones."""
    network = InceptionResNetV1()
    if weights is not None:
        releases = "get 20180402-114759-vggface2.pt from the releases of github.com/timesler/facenet-pytorch"
        path = find_weights(weights, releases)
        load_weights(network, read_state_dict(path), path, ignored=("logits.",))
    return Backbone(network, SPEC, pretrained=weights is not None)
