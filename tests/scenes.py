"""Photos with known faces: ORL images pasted on a larger, textured background."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.fake_sets.faces import orl_face


class Pasted(NamedTuple):
    """A face of a scene: person, top left corner, width, and anticlockwise rotation in degrees."""

    person: int
    left: int
    top: int
    width: int
    angle: float = 0

    @property
    def height(self) -> int:
        return self.width * 112 // 92

    def landmarks(self) -> NDArray[np.float64]:
        """Return the true landmarks (5, 2) in pixels of the scene."""
        upright = orl_face(self.person, 0, self.width, self.height, 1.0)[1] + np.array([self.left, self.top])
        middle = np.array([self.left + self.width / 2, self.top + self.height / 2]) - 0.5
        angle = np.deg2rad(self.angle)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return np.asarray((upright - middle) @ rotation.T + middle)


ONE = (Pasted(0, 120, 60, 230),)
TWO = (Pasted(0, 30, 80, 180), Pasted(4, 330, 80, 230, 20))
ROTATED = (Pasted(7, 180, 60, 220, -30),)


def draw_scene(faces: Sequence[Pasted], width: int = 640, height: int = 420) -> Image.Image:
    """Draw the faces on a smooth background of a fixed seed, each rotated about the middle of its image."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    for face in faces:
        layer = Image.new("RGBA", scene.size)
        layer.paste(Image.fromarray(orl_face(face.person, 0, face.width, face.height, 1.0)[0]), (face.left, face.top))
        middle = (face.left + face.width / 2, face.top + face.height / 2)
        rotated = layer.rotate(face.angle, Image.Resampling.BICUBIC, center=middle)
        scene.paste(rotated, (0, 0), rotated)
    return scene


def read_pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)
