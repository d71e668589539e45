"""Creation of embedders by name, their options, and missing weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deocc.geometry import TEMPLATES
from deocc.networks import create_embedder, create_teacher, list_embedders
from deocc.networks.embedders.registry import read_options

TIMM = "timm/resnet18"


def test_unknown_name_lists_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown embedder 'vgg'.*dlib_resnet.*iresnet100.*onnx.*timm/"):
        create_embedder("vgg")
    with pytest.raises(ValueError, match="unknown embedder 'torchhub/resnet18'"):
        create_embedder("torchhub/resnet18")
    with pytest.raises(ValueError, match="timm has no network 'nonsense'"):
        create_embedder("timm/nonsense")
    expected = {"dlib_resnet", "inception_resnet_v1", "iresnet18", "iresnet50", "iresnet100", "onnx", "timm/"}
    assert expected <= set(list_embedders())


def test_options_override_backbone() -> None:
    embedder = create_embedder(TIMM, size=96, color="bgr", template="facenet", mean=(1, 2, 3), std=(4, 5, 6))
    assert (embedder.input_size, embedder.template.size, embedder.spec.color) == (96, 96, "bgr")
    torch.testing.assert_close(embedder.template.tensor(160), TEMPLATES["facenet"].tensor(), atol=1e-4, rtol=0)
    assert (embedder.mean.flatten().tolist(), embedder.std.flatten().tolist()) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "passport"}, "unknown face template 'passport'"),
        ({"size": 0}, "size must be a positive number"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"color": "gray"}, "'rgb' or 'bgr', got 'gray'"),
        ({"size": 20}, "dlib_resnet does not take images of 20 x 20 pixels"),
        ({"weights": "some.pth"}, "contradict"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_embedder("dlib_resnet", pretrained=False, **options)


def test_read_options() -> None:
    valid = {"mirror": True, "size": 96, "mean": [1, 2, 3.0], "color": None}
    assert read_options(valid) == valid and read_options(None) == {}
    with pytest.raises(ValueError, match="option mirror is true or false, got 1"):
        read_options({"mirror": 1})
    with pytest.raises(ValueError, match="option std is three numbers"):
        read_options({"std": [1, 2]})
    with pytest.raises(ValueError, match="unknown recogniser option 'sise': choose among template, size"):
        read_options({"sise": 96})


def test_teacher_is_frozen_and_pretrained() -> None:
    assert create_teacher("dlib_resnet").frozen
    with pytest.raises(ValueError, match="needs trained weights: give the path"):
        create_teacher("iresnet18")


@pytest.mark.parametrize("name", ["iresnet18", "inception_resnet_v1", TIMM, "onnx"])
def test_missing_weights_message(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no weights file at {tmp_path}/none.pt: (get|give|download) "):
        create_embedder(name, weights=str(tmp_path / "none.pt"))
