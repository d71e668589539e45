"""Aligned crops of ORL faces."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.data import OrlFaces
from deocc.geometry import TEMPLATES, similarity_transform, warp


def draw_crop(index: int, template: str, size: int) -> NDArray[np.uint8]:
    """Crop an ORL image by a template: (size, size, 3)."""
    faces = OrlFaces()
    image = torch.tensor(faces.image(index)).permute(2, 0, 1).float()[None]
    matrix = similarity_transform(torch.tensor(faces.landmarks[index]).float(), TEMPLATES[template].tensor(size))
    return np.asarray(warp(image, matrix, size)[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())


def write_crops(folder: Path) -> Path:
    """Write ArcFace crops of twelve people as `person/image`."""
    for index in range(0, 240, 20):
        path = folder / f"person{index}/0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(draw_crop(index, "arcface", 112)).save(path)
    return folder
