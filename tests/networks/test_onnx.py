"""ONNX files as frozen recognisers."""

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from deocc.networks import create_embedder, widen_stem

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.AvgPool2d(10), nn.Flatten(), nn.Linear(16, 5)).eval()


def _export(
    path: Path, network: nn.Module, shape: tuple[int, ...] = (2, 3, 40, 40), free: tuple[int, ...] = (0,)
) -> Path:
    """Write `network` as ONNX; the dimensions `free` accept any size."""
    axes = {"image": {axis: f"axis{axis}" for axis in free}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(network, (torch.zeros(shape),), path, input_names=["image"], dynamic_axes=axes, dynamo=False)
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_torch_network_that_was_exported(tmp_path, batch):
    network = _network()
    embedder = create_embedder("onnx", weights=str(_export(tmp_path / "net.onnx", network)))
    assert (embedder.input_size, embedder.template.size, embedder.embedding_dim) == (40, 40, 5)
    crop = torch.rand(batch, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(embedder.embed_crop(crop), network(crop), atol=1e-5, rtol=1e-4)


def test_a_batch_fixed_at_one_takes_any_batch(tmp_path):
    network = _network()
    embedder = create_embedder("onnx", weights=str(_export(tmp_path / "net.onnx", network, (1, 3, 40, 40), free=())))
    crop = torch.rand(3, 3, 40, 40) * 2 - 1
    torch.testing.assert_close(embedder.embed_crop(crop), network(crop).detach(), atol=1e-5, rtol=1e-4)


def test_a_free_side_follows_the_template_or_the_option(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    path = str(_export(tmp_path / "net.onnx", network, free=(0, 2, 3)))
    assert create_embedder("onnx", weights=path).input_size == 112
    assert create_embedder("onnx", weights=path, size=30).embedding_dim == 2 * 30 * 30


def test_preprocessing_options_apply(tmp_path):
    network = _network()
    path = str(_export(tmp_path / "net.onnx", network))
    embedder = create_embedder(
        "onnx", weights=path, color="bgr", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), template="dlib"
    )
    crop = torch.rand(1, 3, 40, 40) * 2 - 1
    torch.testing.assert_close(
        embedder.embed_crop(crop), network((crop.flip(1) + 1) / 2).detach(), atol=1e-5, rtol=1e-4
    )


def test_is_frozen_and_not_differentiable(tmp_path):
    embedder = create_embedder("onnx", weights=str(_export(tmp_path / "net.onnx", _network())))
    nn.ModuleList([embedder]).train()
    assert embedder.frozen and not embedder.differentiable and not embedder.training
    assert not embedder(torch.zeros(1, 3, 40, 40, requires_grad=True)).requires_grad
    with pytest.raises(ValueError, match="no convolution of three channels"):
        widen_stem(embedder, 1)


def test_a_copy_embeds_like_the_original(tmp_path):
    """Weight averaging copies whole modules, and an onnxruntime session cannot be copied."""
    embedder = create_embedder("onnx", weights=str(_export(tmp_path / "net.onnx", _network())))
    face = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(copy.deepcopy(embedder)(face), embedder(face))


def test_wrong_files_are_refused_in_one_line(tmp_path):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no onnx")
    four = _export(tmp_path / "four.onnx", nn.Conv2d(4, 1, 1), (1, 4, 8, 8))
    pair = _export(tmp_path / "pair.onnx", nn.Conv2d(3, 1, 1), (2, 3, 8, 8), free=())
    whole = str(_export(tmp_path / "whole.onnx", _network()))
    cases = [
        ({"weights": str(garbage)}, "no readable ONNX file"),
        ({"weights": str(four)}, "expected one of"),
        ({}, "give weights="),
    ]
    cases += [
        ({"weights": str(pair)}, "batch free or 1"),
        ({"weights": whole, "size": 64}, "takes images of 40 pixels"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            create_embedder("onnx", **options)
        assert "\n" not in str(caught.value)


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch):
    path = str(_export(tmp_path / "net.onnx", _network()))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "deocc\[onnx\]"'):
        create_embedder("onnx", weights=path)
