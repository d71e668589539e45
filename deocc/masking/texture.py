"""Occluders from a picture: an RGBA PNG placed on the face by five anchor points."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer, luma, shading
from deocc.masking.registry import register_kind
from deocc.masking.shapes import FaceFrame

_LEVELS = 5  # copies of the picture, each half the size of the previous one, so that a small face has no aliasing


def register_texture(name: str, path: str | Path, anchors: Tensor) -> None:
    """Add an occluder painted from a PNG file, which follows the pose, size and light of the face.

    Args:
        name: of the new kind.
        path: a PNG, transparent where the face shows.
        anchors: (5, 2) x, y in pixels of the picture where the face's eye, eye, nose, mouth corner and mouth corner
            come to lie, left to right; they may lie outside the picture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no pixel of the picture is transparent, or all are; the anchors are not five finite points; or the
            name is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no texture at {path.resolve()}: give the path of an RGBA PNG")
    with Image.open(path, formats=("PNG",)) as image:
        if not image.has_transparency_data:  # an alpha channel, or a transparent colour of a palette
            raise ValueError(
                f"{path} has no transparent pixels (mode {image.mode}): "
                "save it as an RGBA PNG, transparent where the face shows"
            )
        pixels = np.array(image.convert("RGBA"))
    if not pixels[..., 3].any():
        raise ValueError(f"{path} is transparent everywhere: an occluder must cover something")
    if anchors.shape != (5, 2) or not bool(anchors.isfinite().all()):
        raise ValueError(f"expected five finite anchors (5, 2) in pixels of the picture, got {anchors.tolist()}")
    texture = Texture(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, anchors.float())
    register_kind(Kind(name, texture.extent, texture))


class Texture:
    """Painter of one RGBA picture (4, h, w) in [0, 1], for `Kind.paint`; `anchors` as for `register_texture`."""

    def __init__(self, picture: Tensor, anchors: Tensor) -> None:
        self._frame = FaceFrame.from_landmarks(anchors[None])
        height, width = picture.shape[1:]
        f, corners = self._frame, [(x, y) for x in (-1, width) for y in (-1, height)]
        u = [float(f.ux * x + f.uy * y + f.u0) for x, y in corners]
        v = [float(f.vx * x + f.vy * y + f.v0) for x, y in corners]
        self.extent = min(u), min(v), max(u), max(v)
        # A transparent border; sides that are multiples of it, so that halving is exact.
        self._border = border = 1 << _LEVELS
        colour = picture[:3] * picture[3:]  # premultiplied: transparent pixels do not tint their neighbours
        padding = (border, border + -width % border, border, border + -height % border)
        levels = [F.pad(torch.cat([colour, picture[3:]]), padding)]
        for _ in range(_LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        self._texels = torch.cat([level.flatten(1) for level in levels], 1)
        sizes = [(level.shape[1], level.shape[2]) for level in levels]
        starts = [sum(h * w for h, w in sizes[:i]) for i in range(_LEVELS)]
        self._layout = torch.tensor([(start, h, w) for start, (h, w) in zip(starts, sizes, strict=True)])

    def __call__(self, canvas: Canvas) -> Layer:
        """Sample the picture bilinearly at the face coordinates of every pixel."""
        device = canvas.x.device
        f = FaceFrame(*(column.to(device) for column in self._frame))
        # How often to halve the picture, whose pixels may be finer than those of the face, (N, 1, 1).
        bounds = torch.tensor([1.5 * 2**level for level in range(_LEVELS - 1)], device=device)
        level = (f.unit / canvas.frame.unit > bounds).sum(-1, keepdim=True)
        shrink = 1 / (1 << level).float()
        x = canvas.affine(f.xu * shrink, f.xv * shrink, (f.x0 + self._border + 0.5) * shrink - 0.5)
        y = canvas.affine(f.yu * shrink, f.yv * shrink, (f.y0 + self._border + 0.5) * shrink - 0.5)
        start, height, width = self._layout.to(device)[level].unbind(-1)
        x, y = torch.minimum(x.clamp_min(0), width - 1.001), torch.minimum(y.clamp_min(0), height - 1.001)
        left, top = x.floor(), y.floor()
        index, right, down = start + top.long() * width + left.long(), x - left, y - top
        texels = self._texels.to(device)
        upper = texels[:, index] * (1 - right) + texels[:, index + 1] * right
        lower = texels[:, index + width] * (1 - right) + texels[:, index + width + 1] * right
        sampled = upper * (1 - down) + lower * down
        colour, alpha = sampled[:3].transpose(0, 1), sampled[3]  # (N, 3, h, w), premultiplied, and (N, h, w)
        lit = shading(canvas, canvas.u, 0.0).unsqueeze(1)
        if canvas.channels == 1:
            colour = luma(colour)[:, None]
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        return Layer(alpha, (colour / alpha.clamp_min(1 / 255).unsqueeze(1) * lit).clamp(0, 1))
