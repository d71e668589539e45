"""ONNX files as frozen backbones."""

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deocc.networks import Embedder, create_embedder, widen_stem

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.AvgPool2d(10), nn.Flatten(), nn.Linear(16, 5)).eval()


def export(
    path: Path, network: nn.Module, shape: tuple[int, ...] = (2, 3, 40, 40), free: tuple[int, ...] = (0,)
) -> str:
    """Write `network` to an ONNX file whose dimensions `free` accept any size."""
    axes = {"image": {axis: f"axis{axis}" for axis in free}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        torch.onnx.export(network, (torch.zeros(shape),), path, input_names=["image"], dynamic_axes=axes, dynamo=False)
    return str(path)


def random_crop(batch: int) -> Tensor:
    return torch.rand(batch, 3, 40, 40) * 2 - 1


def assert_embeds(embedder: Embedder, crop: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(embedder.embed_crop(crop), expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("exported", "free"), [(2, (0,)), (1, ())], ids=["free batch", "batch of one"])
def test_equals_exported_network(tmp_path: Path, batch: int, exported: int, free: tuple[int, ...]) -> None:
    network = small_network()
    path = export(tmp_path / "net.onnx", network, (exported, 3, 40, 40), free)
    embedder = create_embedder("onnx", weights=path)
    assert (embedder.input_size, embedder.template.size, embedder.embedding_dim) == (40, 40, 5)
    crop = random_crop(batch)
    assert_embeds(embedder, crop, network(crop))


def test_free_side_follows_template_or_option(tmp_path: Path) -> None:
    path = export(tmp_path / "net.onnx", nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), free=(0, 2, 3))
    assert create_embedder("onnx", weights=path).input_size == 112
    assert create_embedder("onnx", weights=path, size=30).embedding_dim == 2 * 30 * 30


def test_preprocessing_options(tmp_path: Path) -> None:
    network = small_network()
    options: dict[str, Any] = {"color": "bgr", "mean": (0.0,) * 3, "std": (255.0,) * 3, "template": "dlib"}
    embedder = create_embedder("onnx", weights=export(tmp_path / "net.onnx", network), **options)
    crop = random_crop(1)
    assert_embeds(embedder, crop, network((crop.flip(1) + 1) / 2))


def test_frozen_and_copyable(tmp_path: Path) -> None:
    embedder = create_embedder("onnx", weights=export(tmp_path / "net.onnx", small_network()))
    nn.ModuleList([embedder]).train()
    assert embedder.frozen and not embedder.differentiable and not embedder.training
    face = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert not embedder(face).requires_grad
    assert torch.equal(copy.deepcopy(embedder)(face), embedder(face))  # sessions of onnxruntime cannot be copied
    with pytest.raises(ValueError, match="no convolution of three channels"):
        widen_stem(embedder, 1)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"no onnx")
    four = export(tmp_path / "four.onnx", nn.Conv2d(4, 1, 1), (1, 4, 8, 8))
    pair = export(tmp_path / "pair.onnx", nn.Conv2d(3, 1, 1), (2, 3, 8, 8), free=())
    whole = export(tmp_path / "whole.onnx", small_network())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weights": str(tmp_path / "garbage.onnx")}, "no readable ONNX file"),
        ({"weights": four}, "expected one of"),
        ({}, "give weights="),
        ({"weights": pair}, "batch free or 1"),
        ({"weights": whole, "size": 64}, "takes images of 40 pixels"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            create_embedder("onnx", **options)
        assert "\n" not in str(caught.value)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(tmp_path / "net.onnx", small_network())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "deocc\[onnx\]"'):
        create_embedder("onnx", weights=path)
