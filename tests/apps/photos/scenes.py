"""Photos with real faces: ORL pictures pasted on a larger, textured ground."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.fake_sets.faces import orl_face


class Pasted(NamedTuple):
    """A face of a scene: whose, the top left corner and width of its upright picture, and how far it is turned to the left, in degrees."""

    person: int
    left: int
    top: int
    width: int
    turn: float = 0

    @property
    def height(self) -> int:
        return self.width * 112 // 92

    def landmarks(self) -> NDArray[np.float64]:
        """The true points (5, 2) in pixels of the scene."""
        upright = orl_face(self.person, 0, self.width, self.height, 1.0)[1] + np.array([self.left, self.top])
        middle = np.array([self.left + self.width / 2, self.top + self.height / 2]) - 0.5
        angle = np.deg2rad(self.turn)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return np.asarray((upright - middle) @ turn.T + middle)


ONE = (Pasted(0, 120, 60, 230),)
TWO = (Pasted(0, 30, 80, 180), Pasted(4, 330, 80, 230, 20))


def draw_scene(faces: Sequence[Pasted], width: int = 640, height: int = 420) -> Image.Image:
    """RGB, smooth colours of a fixed seed behind the faces, each turned about the middle of its picture."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    for face in faces:
        layer = Image.new("RGBA", scene.size)
        layer.paste(Image.fromarray(orl_face(face.person, 0, face.width, face.height, 1.0)[0]), (face.left, face.top))
        middle = (face.left + face.width / 2, face.top + face.height / 2)
        turned = layer.rotate(face.turn, Image.Resampling.BICUBIC, center=middle)
        scene.paste(turned, (0, 0), turned)
    return scene
