"""Occluders from a PNG."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deocc.geometry import TEMPLATES
from deocc.masking import list_kinds, register_texture, render

MakeFaces = Callable[..., Tensor]

ANCHORS = TEMPLATES["canonical"].tensor(200)


def _picture(path: Path) -> Path:
    """200 x 200, transparent but for a red rectangle: columns 60 to 139, rows 120 to 169."""
    pixels = np.zeros((200, 200, 4), np.uint8)
    pixels[120:170, 60:140] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(path)
    return path


def test_texture_at_anchors(own_kinds: None, tmp_path: Path, make_faces: MakeFaces) -> None:
    register_texture("patch", _picture(tmp_path / "patch.png"), ANCHORS)
    assert list_kinds()[-1] == "patch"
    for size in (50, 100, 400):
        masked, masks = render(make_faces(2, size), None, "patch", torch.arange(2))
        rows, columns = masks[0, 0].nonzero().unbind(1)
        scale = size / 200
        bounds = torch.tensor([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) / scale
        torch.testing.assert_close(bounds, torch.tensor([120.0, 170.0, 60.0, 140.0]), atol=2.1 / scale, rtol=0)
        red, green, blue = masked[0, :, round(145 * scale), round(100 * scale)]
        assert red > 0.2 and green == blue == -1


def test_texture_obeys_rules_of_kinds(own_kinds: None, tmp_path: Path, make_faces: MakeFaces) -> None:
    register_texture("patch", _picture(tmp_path / "patch.png"), ANCHORS)
    faces, seeds = torch.cat([make_faces(3, 97), make_faces(3, 97, grey=True)]), torch.arange(6)
    landmarks = TEMPLATES["canonical"].tensor(97) + torch.arange(6.0)[:, None, None]
    masked, masks = render(faces, landmarks, "patch", seeds)
    assert torch.equal(masked[3:, 0], masked[3:, 1]) and torch.equal(masked[3:, 0], masked[3:, 2])
    assert torch.equal(torch.where(masks == 0, masked, faces), faces)
    for i in range(6):
        assert torch.equal(render(faces[i : i + 1], landmarks[i : i + 1], "patch", seeds[i : i + 1])[0][0], masked[i])


def test_texture_bad_input(own_kinds: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no texture at"):
        register_texture("a", tmp_path / "none.png", ANCHORS)
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="no transparent pixels"):
        register_texture("a", tmp_path / "rgb.png", ANCHORS)
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="transparent everywhere"):
        register_texture("a", tmp_path / "clear.png", ANCHORS)
    with pytest.raises(ValueError, match="five finite anchors"):
        register_texture("a", _picture(tmp_path / "patch.png"), ANCHORS[:4])
    with pytest.raises(ValueError, match="exists already"):
        register_texture("box", _picture(tmp_path / "patch.png"), ANCHORS)
