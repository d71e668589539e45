"""IResNet, the backbone of ArcFace and its successors: 112 x 112 to 512 dimensions.

Names follow insightface's `arcface_torch`, whose weights files load directly. Files of AdaFace are detected and their
names translated; that network takes BGR and has a first shortcut that subsamples without a convolution. Files of
CVLface have the same names below `net.` and either colour order, which has to be given.

[0] Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.
[1] github.com/deepinsight/insightface, `recognition/arcface_torch/backbones/iresnet.py`: names and numbers of blocks.
[2] Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022; github.com/mk-minchul/AdaFace,
    `net.py`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights, load_weights, read_state_dict, strip_prefixes

SPEC = EmbedderSpec("arcface", 112, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""Number of blocks per stage."""


class IBasicBlock(nn.Module):
    """Residual block [0]: batch norm, convolution, batch norm, PReLU, strided convolution, batch norm.

    Maps `before` to `after` channels; the shortcut is `downsample`, None for the identity.
    """

    def __init__(self, before: int, after: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride)."""
        residual: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(features))))))
        return residual + (features if self.downsample is None else self.downsample(features))


class IResNet(nn.Module):
    """Stem, four stages of `blocks`, and a linear layer over all 7 x 7 positions between two normalisations.

    With `pooled_shortcut`, the first shortcut subsamples as in AdaFace [2] instead of convolving [1].
    """

    def __init__(self, blocks: tuple[int, int, int, int], pooled_shortcut: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = _stage(64, 64, blocks[0], pooled_shortcut)
        self.layer2 = _stage(64, 128, blocks[1])
        self.layer3 = _stage(128, 256, blocks[2])
        self.layer4 = _stage(256, 512, blocks[3])
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)
        self.features.weight.requires_grad = False  # fixed at 1: only the direction of an embedding matters [1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, 112, 112), normalised according to `SPEC`, to (B, 512)."""
        features = self.prelu(self.bn1(self.conv1(image)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        embedding: Tensor = self.features(self.fc(self.bn2(features).flatten(1)))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Return stem, blocks and head in forward order."""
        stem, head = nn.Sequential(self.conv1, self.bn1, self.prelu), nn.Sequential(self.bn2, self.fc, self.features)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4, head]


def _stage(before: int, after: int, count: int, pooled_shortcut: bool = False) -> nn.Sequential:
    shortcut: nn.Module = nn.MaxPool2d(1, 2)
    if not pooled_shortcut:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(
        IBasicBlock(before, after, 2, shortcut), *(IBasicBlock(after, after) for _ in range(count - 1))
    )


def translate_adaface(state: Mapping[str, Tensor], blocks: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """Rename the tensors of an AdaFace network [2] to the names of `IResNet`; unknown names are kept.

    The last normalisation of AdaFace has no scale and shift; they are set to 1 and 0.
    """
    names = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu"}
    names |= {"output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features"}
    places = [f"layer{stage + 1}.{number}" for stage, count in enumerate(blocks) for number in range(count)]
    for number, place in enumerate(places):
        for position, name in enumerate(("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")):
            names[f"body.{number}.res_layer.{position}"] = f"{place}.{name}"
        for position in (0, 1):
            names[f"body.{number}.shortcut_layer.{position}"] = f"{place}.downsample.{position}"
    translated = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        translated[f"{names[module]}.{parameter}" if module in names else key] = value
    dim = len(translated.get("fc.bias", torch.empty(512)))
    return {"features.weight": torch.ones(dim), "features.bias": torch.zeros(dim)} | translated


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Build the network with the weights of an insightface or AdaFace file, or random ones."""
    blocks = BLOCKS[name]
    if weights is None:
        return Backbone(IResNet(blocks), SPEC, pretrained=False)
    path = find_weights(
        weights, "get a backbone.pth of arcface_torch from insightface's model zoo, or a checkpoint of AdaFace"
    )
    stored, spec = read_state_dict(path), SPEC
    state = strip_prefixes(stored)
    adaface = "input_layer.0.weight" in state
    if adaface:
        state, spec = translate_adaface(state, blocks), replace(SPEC, color="bgr")
    if any("net" in key.split(".") for key in stored):  # CVLface, whose models have the same names in either order
        spec = replace(spec, color=None)
    network = IResNet(blocks, pooled_shortcut=adaface)
    load_weights(network, state, path, ignored=("head.",))  # the classifier in a training checkpoint of AdaFace
    return Backbone(network, spec, pretrained=True)
