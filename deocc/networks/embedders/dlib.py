"""dlib's face ResNet: 150 x 150 RGB chip -> 128 numbers; two images of one person lie nearer than 0.6.

[0] King, "High Quality Face Recognition with Deep Metric Learning", blog.dlib.net, February 2017.
[1] dlib's `examples/dnn_face_recognition_ex.cpp`: the architecture; weights in the public domain (CC0).
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deocc.networks.embedders.spec import EmbedderSpec, Recogniser
from deocc.networks.weights import find_weights, load_weights, read_state_dict

WRAPPERS = 130  # version numbers of the nested layer, tag and skip templates, outermost first
LAYERS = 108
_MOST_BYTES = 2**27  # OURS: the published file has 22,466,066

# For each kind of layer: integers before its weights, whether it has weights, integers after them (a float scalar counts as two).
_LAYOUT: dict[str, tuple[int, bool, int]] = {
    "con_4": (0, True, 25),  # after: filters, kernel 2, stride 2, padding 2, two views of 5, four multipliers
    "affine_": (0, True, 11),  # two views of 5, mode
    "fc_2": (2, True, 19),  # before: outputs, inputs; after: two views of 5, bias mode, four multipliers
    "avg_pool_2": (6, False, 0),
    "max_pool_2": (6, False, 0),
    "relu_": (0, False, 0),
    "add_prev_": (0, False, 0),
}


@dataclass(frozen=True)
class Layer:
    """One layer: its kind as dlib names it, and its weights in dlib's own order, flat, empty where it has none."""

    kind: str
    weights: NDArray[np.float32]


def read_layers(path: Path) -> list[Layer]:
    """The layers of a face network in forward order.

    Raises:
        ValueError: the file is cut, damaged, or no dlib face network.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _DamagedError(f"it has {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
        return _Reader(path.read_bytes()).network()
    except _DamagedError as error:
        raise ValueError(f"{path} is damaged or no dlib face network ({error}): install or download it again") from None


class _DamagedError(Exception):
    """What does not fit, and at which byte."""


class _Reader:
    """A position in the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def network(self) -> list[Layer]:
        self.integers(1)
        self.name("loss_metric_2")
        self.integers(4 + WRAPPERS)
        self.name("input_rgb_image_sized")
        self.integers(3 * 2 + 2)
        layers: list[Layer] = []
        for number in range(LAYERS):
            layers.append(self.layer())
            if number == 0:
                self.integers(1)  # the layer next to the input also stores how many samples an image expands to
        if self.position != len(self.data):
            raise _DamagedError(f"{len(self.data) - self.position} bytes follow the last layer")
        return layers

    def layer(self) -> Layer:
        kind = self.string()
        if kind.startswith("add_prev_"):
            kind = "add_prev_"  # dlib appends the number of the tag that is added
        if kind not in _LAYOUT:
            raise _DamagedError(f"unknown layer {kind[:20]!r} before byte {self.position}")
        before, has_weights, after = _LAYOUT[kind]
        self.integers(before)
        weights = self.tensor() if has_weights else np.empty(0, np.float32)
        self.integers(after)
        if any(byte not in b"01" for byte in self.take(3)):
            raise _DamagedError(f"no bool before byte {self.position}")
        for _ in range(3):  # gradients and a cached output, all empty in a file that holds a trained network
            self.tensor()
        return Layer(kind, weights)

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if count < 0 or len(piece) != count:
            raise _DamagedError(f"it ends at byte {len(self.data)}, where more is expected")
        self.position += count
        return piece

    def integer(self) -> int:
        head = self.take(1)[0]
        if head & 0x70 or not 1 <= head & 0x0F <= 8:
            raise _DamagedError(f"no integer at byte {self.position - 1}")
        value = int.from_bytes(self.take(head & 0x0F), "little")
        return -value if head & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def string(self) -> str:
        return self.take(self.integer()).decode("latin-1")

    def name(self, expected: str) -> None:
        found = self.string()
        if found != expected:
            raise _DamagedError(f"{found[:30]!r} where {expected!r} is expected")

    def tensor(self) -> NDArray[np.float32]:
        version, *shape = self.integers(5)
        if version != 2 or min(shape) < 0:
            raise _DamagedError(f"no tensor before byte {self.position}")
        values = np.frombuffer(self.take(4 * int(np.prod(shape, dtype=object))), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise _DamagedError(f"weights that are not finite before byte {self.position}")
        return values


# The means are dlib's own, of its training images; it divides by 256, not by 255.
SPEC = EmbedderSpec("dlib", 150, mean=(122.782, 117.001, 104.298), std=(256.0, 256.0, 256.0))

# (channels, whether the first block halves the side, blocks) per stage [1].
STAGES = ((32, False, 3), (64, True, 4), (128, True, 3), (256, True, 3), (256, True, 1))

PACKAGE = "face_recognition_models"
FILE = "models/dlib_face_recognition_resnet_model_v1.dat"


class Affine(nn.Module):
    """A scale and a shift per channel: what is left of batch normalisation in a trained network."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        """All channels start with `scale` and without shift."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return features * self.weight[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; a halving block's shortcut is a 2 x 2 mean, missing channels are zeros [1]."""

    def __init__(self, in_channels: int, channels: int, halve: bool) -> None:
        """(B, in_channels, H, W) -> (B, channels, H, W) or, where `halve`, (B, channels, H // 2, W // 2)."""
        super().__init__()
        # dlib pads a convolution only where its stride is 1.
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.affine1 = Affine(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # OURS, matters only without pretrained weights: branches that start small keep 14 blocks without normalisation from exploding.
        self.affine2 = Affine(channels, scale=0.25)
        self.shortcut = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """As the constructor says."""
        branch = self.affine2(self.conv2(F.relu(self.affine1(self.conv1(features)))))
        return F.relu(_add(branch, self.shortcut(features)))


def _add(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two (B, C, H, W) of different C, H, W: the smaller one counts as zero where it has no values, as in dlib."""
    shape = [max(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True)]
    padded = [
        F.pad(x, [n for i in (2, 1, 0) for n in (0, shape[i] - x.shape[i + 1])]) if list(x.shape[1:]) != shape else x
        for x in (a, b)
    ]
    return padded[0] + padded[1]


class DlibResNet(nn.Module):
    """Stem, 14 residual blocks, head. Attributes `stem`, `blocks` and `head` are its parts."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, stride=2), Affine(32), nn.ReLU(), nn.MaxPool2d(3, stride=2))
        blocks: list[nn.Module] = []
        before = 32
        for channels, halve, count in STAGES:
            blocks += [ResidualBlock(before if i == 0 else channels, channels, halve and i == 0) for i in range(count)]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(256, 128, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `SPEC`, H, W >= 103 -> (B, 128)."""
        embedding: Tensor = self.head(self.blocks(self.stem(image)).mean((2, 3)))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Stem, blocks and head in forward order."""
        return [self.stem, *self.blocks, self.head]


def load_dlib_file(network: DlibResNet, path: Path) -> None:
    """Copy the weights of dlib's own `.dat` file into `network`.

    Raises:
        ValueError: the file is cut or damaged, or holds another architecture.
    """
    weights = [layer for layer in read_layers(path) if layer.weights.size]
    # A parameter fills itself from its layer: filters then biases, scales then shifts; modules lie in forward order.
    modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, Affine, nn.Linear))]
    if len(weights) != len(modules):
        raise ValueError(
            f"{path} has {len(weights)} layers with weights, the dlib face network has {len(modules)}: give that network's file"
        )
    for layer, module in zip(weights, modules, strict=True):
        _fill(module, layer, path)


@torch.no_grad()
def _fill(module: nn.Module, layer: Layer, path: Path) -> None:
    parameters = list(_in_file_order(module))
    needed = sum(parameter.numel() for parameter in parameters)
    if layer.weights.size != needed:
        raise ValueError(
            f"{path} has {layer.weights.size} weights in a {layer.kind!r} that needs {needed}: give the dlib face network's file"
        )
    start = 0
    for parameter in parameters:
        values = torch.from_numpy(layer.weights[start : start + parameter.numel()])
        parameter.copy_(values.view(parameter.shape))
        start += parameter.numel()


def _in_file_order(module: nn.Module) -> Iterator[Tensor]:
    if isinstance(module, nn.Linear):
        yield module.weight.T  # dlib stores inputs x outputs
    else:
        yield from module.parameters()


def packaged_weights() -> Path:
    """The file that the package face-recognition-models ships.

    Raises:
        FileNotFoundError: the package is not installed or lacks the file.
    """
    remedy = 'pip install "deocc[demo]", or give weights= the path of a dlib_face_recognition_resnet_model_v1.dat'
    # Found, not imported: the package's __init__ needs pkg_resources, which new setuptools no longer have.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the package face-recognition-models, which ships dlib's face network, is not installed: {remedy}"
        )
    return find_weights(Path(spec.submodule_search_locations[0]) / FILE, remedy)


def build(name: str, weights: str | None, pretrained: bool) -> Recogniser:
    """dlib's network with the given weights (`.dat`, or a state dict), the packaged ones (None), or random ones (`pretrained` False).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds another network.
    """
    network = DlibResNet()
    if pretrained:
        path = (
            packaged_weights()
            if weights is None
            else find_weights(weights, 'give another path, or none after pip install "deocc[demo]"')
        )
        if path.suffix == ".dat":
            load_dlib_file(network, path)
        else:
            load_weights(network, read_state_dict(path), path)
    return Recogniser(network, SPEC, pretrained)
