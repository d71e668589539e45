"""IResNet, the backbone of ArcFace and its successors: 112 x 112 -> 512 numbers.

Names follow insightface's `arcface_torch`, whose backbone files therefore load as they are. Files of AdaFace are recognised and
translated: its network differs in names, in blue-green-red input, and in the first shortcut, which drops pixels without a convolution.

[0] Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.
[1] github.com/deepinsight/insightface, `recognition/arcface_torch/backbones/iresnet.py`: names and numbers of blocks.
[2] Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022; github.com/mk-minchul/AdaFace, `net.py`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from deocc.networks.embedders.spec import EmbedderSpec, Recogniser
from deocc.networks.weights import find_weights, load_weights, read_state_dict, strip_prefixes

SPEC = EmbedderSpec("arcface", 112, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}

# Positions in AdaFace's Sequentials [2] -> names of [1].
_ADAFACE_STEM = {"0": "conv1", "1": "bn1", "2": "prelu"}
_ADAFACE_BLOCK = {"0": "bn1", "1": "conv1", "2": "bn2", "3": "prelu", "4": "conv2", "5": "bn3"}
_ADAFACE_HEAD = {"0": "bn2", "3": "fc", "4": "features"}


class IBasicBlock(nn.Module):
    """Normalise, convolve, normalise, PReLU, convolve with the stride, normalise, beside a shortcut [0]."""

    def __init__(self, before: int, after: int, stride: int, downsample: nn.Module | None) -> None:
        """(B, before, H, W) -> (B, after, H / stride, W / stride); `downsample` None = the shortcut is the input."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """As the constructor says."""
        branch: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(features))))))
        return branch + (features if self.downsample is None else self.downsample(features))


class IResNet(nn.Module):
    """Stem, four stages of blocks, and a linear map of all 7 x 7 positions between two normalisations."""

    def __init__(self, blocks: tuple[int, int, int, int], pooled_shortcut: bool = False) -> None:
        """Build it with random weights.

        Args:
            blocks: how many in each stage.
            pooled_shortcut: whether the first shortcut only drops pixels, as AdaFace's does [2], instead of convolving [1].
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        first = nn.MaxPool2d(1, 2) if pooled_shortcut else _convolved(64, 64)
        self.layer1 = _stage(64, 64, blocks[0], first)
        self.layer2 = _stage(64, 128, blocks[1], _convolved(64, 128))
        self.layer3 = _stage(128, 256, blocks[2], _convolved(128, 256))
        self.layer4 = _stage(256, 512, blocks[3], _convolved(256, 512))
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)
        self.features.weight.requires_grad = False  # fixed at 1, since only an embedding's direction counts [1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 112, 112), normalised by `SPEC` -> (B, 512)."""
        features = self.prelu(self.bn1(self.conv1(image)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        embedding: Tensor = self.features(self.fc(self.dropout(self.bn2(features).flatten(1))))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Stem, blocks and head in forward order."""
        stem, head = nn.Sequential(self.conv1, self.bn1, self.prelu), nn.Sequential(self.bn2, self.fc, self.features)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4, head]


def _convolved(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))


def _stage(before: int, after: int, count: int, downsample: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        IBasicBlock(before, after, 2, downsample), *(IBasicBlock(after, after, 1, None) for _ in range(count - 1))
    )


def is_adaface(state: Mapping[str, Tensor]) -> bool:
    """Whether these named tensors, without prefixes, are an AdaFace network's."""
    return "input_layer.0.weight" in state


def translate_adaface(state: Mapping[str, Tensor], blocks: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """AdaFace's names [2] -> those of `IResNet`; names without a counterpart stay as they are.

    Its last normalisation has no scale and shift: they become 1 and 0.
    """
    places = [f"layer{stage + 1}.{number}" for stage, count in enumerate(blocks) for number in range(count)]
    translated = {_translated(key, places): value for key, value in state.items()}
    width = len(translated.get("fc.bias", torch.empty(512)))
    return {"features.weight": torch.ones(width), "features.bias": torch.zeros(width)} | translated


def _translated(key: str, places: list[str]) -> str:
    match key.split("."):
        case ["input_layer", position, *rest] if position in _ADAFACE_STEM:
            return ".".join([_ADAFACE_STEM[position], *rest])
        case ["output_layer", position, *rest] if position in _ADAFACE_HEAD:
            return ".".join([_ADAFACE_HEAD[position], *rest])
        case ["body", block, "res_layer", position, *rest] if (
            block.isdigit() and int(block) < len(places) and position in _ADAFACE_BLOCK
        ):
            return ".".join([places[int(block)], _ADAFACE_BLOCK[position], *rest])
        case ["body", block, "shortcut_layer", *rest] if block.isdigit() and int(block) < len(places):
            return ".".join([places[int(block)], "downsample", *rest])
    return key


def build(name: str, weights: str | None, pretrained: bool) -> Recogniser:
    """The network with the weights of an insightface or AdaFace file, or with random ones where `weights` is None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds another network.
    """
    blocks = BLOCKS[name]
    if weights is None:
        return Recogniser(IResNet(blocks), SPEC, pretrained=False)
    path = find_weights(
        weights, "get a backbone.pth of arcface_torch from insightface's model zoo, or a checkpoint of AdaFace"
    )
    state = strip_prefixes(read_state_dict(path))
    adaface = is_adaface(state)
    network = IResNet(blocks, pooled_shortcut=adaface)
    # A training checkpoint also holds the classifier, "head.kernel" in AdaFace's.
    load_weights(network, translate_adaface(state, blocks) if adaface else state, path, ignored=("head.",))
    return Recogniser(network, replace(SPEC, color="bgr") if adaface else SPEC, pretrained=True)
