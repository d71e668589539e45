"""Put an occluder on every face of a batch.

Images are grouped by kind and by greyness and painted a group at a time, in pieces small enough for the processor's cache and only in the
window of the crop that the kind can reach. Each image depends on its own face, landmarks, kind and seed alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.geometry import LARGEST_COORDINATE, TEMPLATES
from deocc.masking.canvas import Canvas, Kind, Layer, Light, read_light
from deocc.masking.random import Draws
from deocc.masking.registry import get_kind, kind_numbers, list_kinds
from deocc.masking.shapes import FaceFrame

_PIXELS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Pixels painted together: more fall out of the processor's cache, fewer pay the fixed cost of an operation too often. Measured. OURS."""


@torch.no_grad()
def render(
    faces: Tensor, landmarks: Tensor | None, kinds: Tensor | Sequence[str] | str, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask faces.

    Rule of grey: where a face's three channels are equal everywhere, its occluder is painted in the brightness (BT.601) of its colours,
    so that hue does not tell covered pixels from visible ones.

    Args:
        faces: (B, 3, H, W) in [-1, 1].
        landmarks: (B, 5, 2) or (5, 2) x, y in pixels: eye, eye, nose, mouth corner, mouth corner; None = the canonical crop's template.
        kinds: (B,) int64 positions in `list_kinds()`, -1 = no occluder; or B names; or one name for all.
        seeds: (B,) int64, from which everything random follows.

    Returns:
        The masked faces, (B, 3, H, W) in [-1, 1], equal to `faces` bit for bit wherever the mask is 0; and the masks, (B, 1, H, W), 1
        exactly where the occluder touched the pixel and 0 elsewhere.

    Raises:
        ValueError: a shape or a kind is wrong, landmarks are not finite or farther out than `deocc.geometry.LARGEST_COORDINATE`, or an
            occluder would lie outside its image.
    """
    _check_faces(faces, seeds)
    numbers = _numbers(kinds, faces)
    table = [get_kind(number) for number in range(len(list_kinds()))]
    masked, masks = paint_kinds(table, faces, landmarks, numbers, seeds)
    missing = (numbers >= 0) & (masks.flatten(1).amax(1) == 0)
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
    """Paint on each face the kind at its position in `table`; arguments and results otherwise as for `render`.

    Args:
        table: the kinds to choose from, registered or not.
        faces: (B, 3, H, W) in [-1, 1].
        landmarks: (B, 5, 2), (5, 2) or None.
        numbers: (B,) int64 positions in `table`, -1 = the face stays as it is.
        seeds: (B,) int64.
    """
    points, seeds = _points(landmarks, faces), seeds.to(faces.device)
    code = torch.where(numbers >= 0, numbers * 2 + _is_grey(faces), -1)
    order = code.argsort(stable=True)
    masked, masks = faces.clone(), torch.zeros_like(faces[:, :1])
    frame = FaceFrame.from_landmarks(points)
    inputs = RenderInputs(frame.take(order), Draws(seeds[order]), read_light(faces, frame).take(order))
    for value, group in _groups(code):
        _paint_group(table[value // 2], 1 if value % 2 else 3, inputs.take(group), (masked, masks, order[group]))
    return masked, masks


class RenderInputs(NamedTuple):
    """What is known about the images before they are painted."""

    frame: FaceFrame
    draws: Draws
    light: Light

    def take(self, index: slice) -> "RenderInputs":
        return RenderInputs(self.frame.take(index), self.draws.take(index), self.light.take(index))


def _is_grey(faces: Tensor) -> Tensor:
    """(B,) bool: the three channels are equal everywhere. One row tells most batches of colour."""
    row = _same_channels(faces[:, :, faces.shape[2] // 2])
    return _same_channels(faces) if bool(row.any()) else row


def _same_channels(faces: Tensor) -> Tensor:
    return (faces[:, :2] == faces[:, 1:]).flatten(1).all(1)


def _groups(code: Tensor) -> Iterator[tuple[int, slice]]:
    """Each code but -1 that occurs, and where it lies in sorted order."""
    clean, *counts = torch.bincount(code + 1, minlength=1).tolist()
    stop = clean
    for value, count in enumerate(counts):
        start, stop = stop, stop + count
        if count:
            yield value, slice(start, stop)


def _paint_group(kind: Kind, channels: int, inputs: RenderInputs, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """Paint one kind on the faces at `index`, in place, and set their masks, in pieces that fit the cache."""
    faces, masks, index = out
    rows, columns = _window(kind, inputs.frame, faces.shape[-2], faces.shape[-1])
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return
    x = torch.arange(columns.start, columns.stop, device=faces.device, dtype=torch.float32)
    y = torch.arange(rows.start, rows.stop, device=faces.device, dtype=torch.float32)
    windows = faces[:, :, rows, columns], masks[:, :, rows, columns]
    at_once = max(1, _PIXELS_AT_ONCE.get(faces.device.type, 1 << 20) // (height * width))
    for first in range(0, len(index), at_once):
        piece = slice(first, first + at_once)
        _blend(kind.paint(Canvas(x, y, *inputs.take(piece), channels)), channels, (*windows, index[piece]))


def _blend(layer: Layer, channels: int, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """face (1 - alpha) + (2 colour - 1) alpha; where alpha is 0 this is the face less +0, so every bit of it, whatever the colour."""
    faces, masks, index = out
    alpha = layer.alpha.unsqueeze(1).to(
        torch.promote_types(layer.alpha.dtype, faces.dtype)
    )  # in float32, 1 - alpha is rounded
    away = alpha - (layer.colour * (alpha * 2)).nan_to_num_()
    blended = (faces[:, :channels].index_select(0, index) * (1 - alpha)).sub_(away)
    faces.index_copy_(0, index, blended.to(faces.dtype).expand(-1, 3, -1, -1))
    masks.index_copy_(0, index, torch.gt(alpha, 0, out=torch.empty_like(alpha, dtype=masks.dtype)))


def _window(kind: Kind, frame: FaceFrame, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that hold all that the kind can paint on these images."""
    if kind.extent is None:
        return slice(0, height), slice(0, width)
    left, top, right, bottom = kind.extent
    corners = torch.tensor([(left, top), (right, top), (left, bottom), (right, bottom)], device=frame.unit.device)
    x, y = frame.pixels(corners)
    low_x, low_y, high_x, high_y = torch.stack([x.amin(), y.amin(), x.amax(), y.amax()]).tolist()
    rows = slice(max(0, int(low_y) - 1), min(height, int(high_y) + 3))
    return rows, slice(max(0, int(low_x) - 1), min(width, int(high_x) + 3))


def _check_faces(faces: Tensor, seeds: Tensor) -> None:
    if faces.ndim != 4 or faces.shape[1] != 3 or 0 in faces.shape[2:] or not faces.is_floating_point():
        raise ValueError(f"expected float faces (B, 3, H, W) in [-1, 1], got {faces.dtype} {tuple(faces.shape)}")
    if seeds.shape != faces.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"expected one int64 seed per face, ({len(faces)},), got {seeds.dtype} {tuple(seeds.shape)}")


def _numbers(kinds: Tensor | Sequence[str] | str, faces: Tensor) -> Tensor:
    """(B,) int64 positions in `list_kinds()`."""
    if not isinstance(kinds, Tensor):
        names = [kinds] * len(faces) if isinstance(kinds, str) else list(kinds)
        kinds = torch.tensor(kind_numbers(names), dtype=torch.int64, device=faces.device)
    if kinds.shape != faces.shape[:1] or kinds.dtype != torch.int64:
        raise ValueError(
            f"expected one int64 kind or one name per face, ({len(faces)},), got {kinds.dtype} {tuple(kinds.shape)}"
        )
    count = len(list_kinds())
    if bool(((kinds < -1) | (kinds >= count)).any()):
        raise ValueError(f"expected kinds from -1 to {count - 1} ({', '.join(list_kinds())}), got {kinds.tolist()}")
    return kinds.to(faces.device)


def _points(landmarks: Tensor | None, faces: Tensor) -> Tensor:
    """(B, 5, 2) float32 landmarks."""
    if landmarks is None:
        height, width = faces.shape[-2:]
        if height != width:
            raise ValueError(
                f"without landmarks the faces must be square canonical crops, got {height} x {width}: pass landmarks"
            )
        landmarks = TEMPLATES["canonical"].tensor(width)
    if landmarks.shape not in ((5, 2), (len(faces), 5, 2)):
        raise ValueError(f"expected landmarks (5, 2) or ({len(faces)}, 5, 2), got {tuple(landmarks.shape)}")
    if not bool((landmarks.abs() <= LARGEST_COORDINATE).all()):
        found = f"got {float(landmarks.abs().max()):g}"
        raise ValueError(
            f"landmarks must be finite pixels up to {LARGEST_COORDINATE:g}, {found}: check the detector, or pass None"
        )
    return landmarks.to(device=faces.device, dtype=torch.float32).expand(len(faces), 5, 2)
