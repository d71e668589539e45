"""Render occluders on a batch of faces.

Images are grouped by kind and colour and painted group by group, in pieces that fit the processor's cache and only in
the window that the kind can reach. Each result depends on the image's own face, landmarks, kind and seed, never on the
rest of the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.geometry import LARGEST_COORDINATE, TEMPLATES
from deocc.masking.canvas import Canvas, Kind, Light, read_light
from deocc.masking.random import Draws
from deocc.masking.registry import NO_OCCLUDER, get_kind, kind_numbers, list_kinds
from deocc.masking.shapes import FaceFrame

# Pixels painted together (measured): with more, the CPU's cache misses; with fewer, operations' overhead dominates.
_PIXELS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}


class RenderInputs(NamedTuple):
    """Geometry, random numbers and lighting of the images to be painted."""

    frame: FaceFrame
    draws: Draws
    light: Light

    def take(self, index: Tensor | slice) -> "RenderInputs":
        """Return the inputs of some of the images."""
        frame = FaceFrame(*(column[index] for column in self.frame))
        return RenderInputs(frame, self.draws.take(index), Light(*(column[index] for column in self.light)))


@torch.no_grad()
def render(
    faces: Tensor, landmarks: Tensor | None, kinds: Tensor | Sequence[str] | str, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Render occluders on faces.

    On a grey face (three equal channels) the occluder is painted in the brightness (BT.601) of its colours, so that hue
    does not reveal covered pixels.

    Args:
        faces: (B, 3, H, W) in [-1, 1].
        landmarks: (B, 5, 2) or (5, 2), x and y in pixels of eyes, nose and mouth corners, left to right; None for the
            canonical template.
        kinds: (B,) int64 positions in `list_kinds()`, -1 for no occluder; or B names; or one name for all.
        seeds: (B,) int64, which determine everything random.

    Returns:
        Masked faces (B, 3, H, W) in [-1, 1], bit-identical to `faces` where the mask is 0, and masks (B, 1, H, W), 1
        exactly where the occluder changed the pixel, else 0.

    Raises:
        ValueError: a shape or a kind is wrong, landmarks are not finite or beyond `deocc.geometry.LARGEST_COORDINATE`,
            or an occluder is outside its image.
    """
    if faces.ndim != 4 or faces.shape[1] != 3 or 0 in faces.shape[2:] or not faces.is_floating_point():
        raise ValueError(f"expected float faces (B, 3, H, W) in [-1, 1], got {faces.dtype} {tuple(faces.shape)}")
    if seeds.shape != faces.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"expected one int64 seed per face, ({len(faces)},), got {seeds.dtype} {tuple(seeds.shape)}")
    if not isinstance(kinds, Tensor):
        numbers = kind_numbers([kinds] * len(faces) if isinstance(kinds, str) else list(kinds))
        kinds = torch.tensor(numbers, dtype=torch.int64)
    if kinds.shape != faces.shape[:1] or kinds.dtype != torch.int64:
        got = f"got {kinds.dtype} {tuple(kinds.shape)}"
        raise ValueError(f"expected one int64 kind or one name per face, ({len(faces)},), {got}")
    count = len(list_kinds())
    if bool(((kinds < NO_OCCLUDER) | (kinds >= count)).any()):
        raise ValueError(f"expected kinds from -1 to {count - 1} ({', '.join(list_kinds())}), got {kinds.tolist()}")
    kinds = kinds.to(faces.device)
    masked, masks = paint_kinds([get_kind(i) for i in range(count)], faces, landmarks, kinds, seeds)
    missing = (kinds != NO_OCCLUDER) & (masks.flatten(1).amax(1) == 0)
    if bool(missing.any()):
        raise ValueError(
            f"the occluder lies outside the crop on images {missing.nonzero()[:, 0].tolist()}: "
            f"landmarks must be pixels of this {faces.shape[-2]} x {faces.shape[-1]} crop"
        )
    return masked, masks


@torch.no_grad()
def paint_kinds(
    table: Sequence[Kind], faces: Tensor, landmarks: Tensor | None, numbers: Tensor, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint kinds that need not be registered, given by positions (B,) int64 in `table`; otherwise as `render`."""
    height, width = faces.shape[-2:]
    if landmarks is None:
        if height != width:
            got = f"got {height} x {width}"
            raise ValueError(f"without landmarks the faces must be square canonical crops, {got}: pass landmarks")
        landmarks = TEMPLATES["canonical"].tensor(width)
    if landmarks.shape not in ((5, 2), (len(faces), 5, 2)):
        raise ValueError(f"expected landmarks (5, 2) or ({len(faces)}, 5, 2), got {tuple(landmarks.shape)}")
    if not bool((landmarks.abs() <= LARGEST_COORDINATE).all()):
        got = f"got {float(landmarks.abs().max()):g}: check the detector, or pass None"
        raise ValueError(f"landmarks must be finite pixels up to {LARGEST_COORDINATE:g}, {got}")
    points = landmarks.to(device=faces.device, dtype=torch.float32).expand(len(faces), 5, 2)
    middle = faces[:, :, height // 2]
    grey = (middle[:, :2] == middle[:, 1:]).flatten(1).all(1)  # the middle row alone settles most colour batches
    if bool(grey.any()):
        grey = (faces[:, :2] == faces[:, 1:]).flatten(1).all(1)
    code = torch.where(numbers >= 0, numbers * 2 + grey, -1)  # kind and colour; images are painted by code
    order = code.argsort(stable=True)
    masked, masks = faces.clone(), torch.zeros_like(faces[:, :1])
    frame = FaceFrame.from_landmarks(points)
    inputs = RenderInputs(frame, Draws(seeds.to(faces.device)), read_light(faces, frame)).take(order)
    stop, *counts = torch.bincount(code + 1, minlength=1).tolist()  # the first count is of images without occluder
    for value, count in enumerate(counts):
        group, stop = slice(stop, stop + count), stop + count
        if count:
            channels = 1 if value % 2 else 3
            _paint_group(table[value // 2], channels, inputs.take(group), masked, masks, order[group])
    return masked, masks


def _paint_group(kind: Kind, channels: int, inputs: RenderInputs, faces: Tensor, masks: Tensor, index: Tensor) -> None:
    """Paint one kind on the faces at `index`, whose inputs are given, and set their masks, in place."""
    (height, width), device = faces.shape[-2:], faces.device
    top, bottom, left, right = 0, height, 0, width  # the window that contains everything the kind can paint
    if kind.extent is not None:
        west, north, east, south = kind.extent
        corners = torch.tensor([(west, north), (east, north), (west, south), (east, south)], device=device)
        x, y = inputs.frame.pixels(corners)
        low_x, low_y, high_x, high_y = torch.stack([x.amin(), y.amin(), x.amax(), y.amax()]).tolist()
        top, bottom = max(0, int(low_y) - 1), min(height, int(high_y) + 3)
        left, right = max(0, int(low_x) - 1), min(width, int(high_x) + 3)
    if bottom <= top or right <= left:
        return
    x = torch.arange(left, right, device=device, dtype=torch.float32)
    y = torch.arange(top, bottom, device=device, dtype=torch.float32)
    faces, masks = faces[:, :, top:bottom, left:right], masks[:, :, top:bottom, left:right]
    at_once = max(1, _PIXELS_AT_ONCE.get(device.type, 1 << 20) // (len(x) * len(y)))
    for first in range(0, len(index), at_once):
        piece = slice(first, first + at_once)
        layer = kind.paint(Canvas(x, y, *inputs.take(piece), channels))
        # Blend: face (1 - alpha) + (2 colour - 1) alpha. Where alpha is 0 the face keeps every bit.
        alpha = layer.alpha.unsqueeze(1)
        alpha = alpha.to(torch.promote_types(alpha.dtype, faces.dtype))  # 1 - alpha would be rounded in float32
        subtracted = alpha - (layer.colour * (alpha * 2)).nan_to_num_()
        blended = (faces[:, :channels].index_select(0, index[piece]) * (1 - alpha)).sub_(subtracted)
        faces.index_copy_(0, index[piece], blended.to(faces.dtype).expand(-1, 3, -1, -1))
        masks.index_copy_(0, index[piece], torch.gt(alpha, 0, out=torch.empty_like(alpha, dtype=masks.dtype)))
