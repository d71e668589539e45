"""Label-preserving changes for training a mask predictor.

Glasses frames, beards, shadows, glare and camera defects are no occluders: none of them changes the mask (as in the
training of XSeg of DeepFaceLab and of FaceOcc of OFIQ). Faces are displaced, because the landmarks of a masked face are
guessed and its crop is aligned less well; occluders are darkened and overexposed. Not known from the paper; our choice.
All randomness follows from an image's seed.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.geometry import transform_points, warp
from deocc.masking.canvas import NOISE_TILE, Canvas, Kind, Layer, noise_windows, wave
from deocc.masking.random import Draws, uniform
from deocc.masking.renderer import paint_kinds
from deocc.masking.shapes import norm, superellipse

# Streams of an image's random numbers; the occluders use lower ones.
_WORN_STREAM, _CAST_STREAM, _CAMERA_STREAM, _PLACE_STREAM, _EXPOSURE_STREAM = (1 << bit for bit in range(41, 46))


def displace(
    faces: Tensor, landmarks: Tensor, seeds: Tensor, strength: float = 1.0, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Scale, stretch, turn and shift a share of the faces, as if aligned by inaccurate landmarks.

    At strength 1 sides change by up to 38 %, faces turn by up to 14 degrees and move by up to 10 % of the crop.

    Args:
        faces: (B, 3, S, S) in [-1, 1].
        landmarks: (B, 5, 2) in pixels.
        seeds: (B,) int64.
        strength: factor of the changes.
        probability: share of the faces that are moved.

    Returns:
        Faces (B, 3, S, S) and their landmarks (B, 5, 2).
    """
    size = faces.shape[-1]
    draws = Draws(seeds, _PLACE_STREAM)
    moved = draws.chance(probability)
    changes = draws.between_each((-0.22, 0.22), (-0.1, 0.1), (-0.25, 0.25), (-0.1, 0.1), (-0.1, 0.1))
    zoom, stretch, turn, right, down = (change * moved * strength for change in changes)
    scale_x, scale_y = (zoom - stretch).exp(), (zoom + stretch).exp()
    upper = torch.cat([scale_x * turn.cos(), -scale_y * turn.sin()], 2)
    lower = torch.cat([scale_x * turn.sin(), scale_y * turn.cos()], 2)
    linear = torch.cat([upper, lower], 1)
    centre = torch.full((len(faces), 2, 1), (size - 1) / 2, device=faces.device)
    offset = centre - linear @ centre + torch.cat([right, down], 1) * size
    matrix = torch.cat([linear, offset], 2)
    return warp(faces, matrix, size), transform_points(landmarks, matrix)


def add_worn(faces: Tensor, landmarks: Tensor, seeds: Tensor, probability: float = 0.4) -> Tensor:
    """Draw glasses frames or a beard on a share of the faces.

    Args:
        faces: (B, 3, H, W) in [-1, 1].
        landmarks: (B, 5, 2) in pixels.
        seeds: (B,) int64.
        probability: share of the faces that are changed.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    return _paint_some(_WORN, faces, landmarks, seeds, probability, _WORN_STREAM)


def add_cast(faces: Tensor, landmarks: Tensor, seeds: Tensor, probability: float = 0.3) -> Tensor:
    """Cast a shadow or a glare on a share of the faces, over whatever covers them; arguments as for `add_worn`."""
    return _paint_some(_CAST, faces, landmarks, seeds, probability, _CAST_STREAM)


def expose(masked_faces: Tensor, mask: Tensor, seeds: Tensor, probability: float = 0.4) -> Tensor:
    """Darken or overexpose what covers a share of the faces: black cloth and white paper lose their texture in photos.

    Args:
        masked_faces: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) in [0, 1], 1 = covered.
        seeds: (B,) int64.
        probability: share of the faces whose occluder is changed.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    draws = Draws(seeds, _EXPOSURE_STREAM)
    gain = (draws.between(-2.3, 1.0) * draws.chance(probability)).exp()[:, None]
    exposed = ((masked_faces + 1) * gain - 1).clamp(-1, 1)
    return masked_faces + (exposed - masked_faces) * mask


def add_camera_defects(faces: Tensor, seeds: Tensor) -> Tensor:
    """Give each image a tint, contrast, coarser pixels, blur, noise and JPEG artefacts of random strength.

    Args:
        faces: (B, 3, H, W) in [-1, 1].
        seeds: (B,) int64.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    draws = uniform(seeds, 14, _CAMERA_STREAM)[:, :, None, None, None]
    grey = (faces[:, :1] == faces[:, 1:]).all(1, keepdim=True).flatten(1).all(1)[:, None, None, None]
    tint = torch.where(grey, 0.0, (draws[:, 0:3, 0] - 0.5) * 0.3 * (draws[:, 3] < 0.5))
    gain = 0.75 + 0.65 * draws[:, 4]
    changed = (faces * gain + tint + (draws[:, 5] - 0.5) * 0.4).clamp(-1, 1)
    # Coarser pixels: the sides are reduced to a share, and the images enlarged again.
    share, size = torch.where(draws[:, 12] < 0.25, 0.15 + 0.6 * draws[:, 13], 1.0).flatten(), faces.shape[2:]
    for number in (share < 1).nonzero()[:, 0].tolist():
        coarse = [max(2, round(side * float(share[number]))) for side in size]
        small = F.interpolate(changed[number][None], coarse, mode="area")
        changed[number] = F.interpolate(small, size, mode="bilinear", align_corners=False)[0]
    # Gaussian blur of at most 1.2 pixels; 0 leaves an image unchanged.
    sigma = (1.2 * draws[:, 6] * (draws[:, 7] < 0.4)).flatten()[:, None]
    offsets = torch.arange(-3, 4, device=faces.device, dtype=faces.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2 + 1e-6))
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
    channels = changed.reshape(1, -1, *faces.shape[2:])
    for shape, pad in (((-1, 1, 1, 7), (3, 3, 0, 0)), ((-1, 1, 7, 1), (0, 0, 3, 3))):
        channels = F.conv2d(F.pad(channels, pad, mode="replicate"), weights.view(shape), groups=channels.shape[1])
    changed = channels.view_as(faces)
    strength, place = 0.08 * draws[:, 8].square(), (draws[:, 11, 0, 0, 0] * NOISE_TILE * NOISE_TILE).long()
    noise = noise_windows(place // NOISE_TILE, place % NOISE_TILE, *faces.shape[2:])[:, None]
    changed = (changed + 1.7 * strength * noise).clamp(-1, 1)
    quality = torch.where(draws[:, 9] < 0.5, 30 + 65 * draws[:, 10], 100.0).flatten()
    for number in (quality < 100).nonzero()[:, 0].tolist():
        pixels = (changed[number].add(1).mul(127.5).round().byte().permute(1, 2, 0)).cpu().numpy()
        code = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, int(quality[number])])[1]
        decoded = torch.from_numpy(cv2.imdecode(code, cv2.IMREAD_COLOR)).permute(2, 0, 1)
        changed[number] = decoded.to(faces.device, faces.dtype) / 127.5 - 1
    return changed


def _paint_some(
    kinds: tuple[Kind, ...], faces: Tensor, landmarks: Tensor, seeds: Tensor, probability: float, stream: int
) -> Tensor:
    choice, chance = uniform(seeds, 2, stream).unbind(1)
    number = torch.where(chance < probability, (choice * len(kinds)).long(), -1)
    return paint_kinds(kinds, faces, landmarks, number, seeds ^ stream)[0]


def _glasses(canvas: Canvas) -> Layer:
    """Draw thin frames with clear glass, which reflects a little."""
    draws, u = canvas.draws, canvas.posed_u(0.0)
    shift, width, height, gap = draws.between_each((-0.02, 0.1), (0.33, 0.44), (0.2, 0.36), (0.07, 0.13))
    squareness, rim, shine = draws.between_each((0.0, 1.0), (0.012, 0.035), (0.0, 0.18))
    side, v = u.abs(), canvas.affine(0.0, 1.0, -shift)
    lens = superellipse((side - (width + gap)) / width, v / height, squareness).sub_(1).mul_(width * 0.8)
    bridge = torch.maximum((v + 0.3 * height).abs_().sub_(rim), side - 0.2)
    temple = torch.maximum((v + 0.35 * height).abs_().sub_(rim), torch.maximum(side - 1.15, 2 * width + 0.06 - side))
    frame = canvas.cover(torch.minimum(lens.abs().sub_(rim), torch.minimum(bridge, temple)))
    glass = canvas.cover(lens).mul_(shine)
    colour = canvas.paint(draws.colour(0.02, 0.6)) * frame.unsqueeze(1) + (1 - frame).unsqueeze(1) * 0.9
    return Layer(torch.maximum(frame, glass), colour.clamp_(0, 1))


def _beard(canvas: Canvas) -> Layer:
    """Draw hair around the mouth and along the jaw, from stubble to a full beard, without the lips."""
    draws, u, v = canvas.draws, canvas.posed_u(0.3), canvas.v
    top, width, bottom, density = draws.between_each((0.72, 1.0), (0.5, 1.1), (1.7, 2.1), (0.2, 0.65))
    centre, half = (top + bottom) / 2, (bottom - top) / 2
    area = superellipse(u / width, (v - centre) / half, 0.5).sub_(1).mul_(0.5)
    lips = norm(u / 0.36, (v - 1.12) / 0.13).sub_(1).mul_(-0.15)
    cheeks = (0.95 + 0.15 * draws.unit() - u.abs() * 0.1).sub_(v)  # above this line only a moustache grows
    cheeks = torch.minimum(cheeks, u.abs() - 0.4)
    distance = torch.maximum(torch.maximum(area, lips), cheeks)
    soft = (distance * -(6 + 6 * draws.unit())).add_(0.5).clamp_(0, 1)
    hair = wave(canvas.affine(7.0, 2.0, 0.0).add_(canvas.grain)).mul_(0.35).add_(0.65)
    tone = canvas.paint(draws.pick(((0.08, 0.06, 0.05), (0.2, 0.13, 0.08), (0.35, 0.24, 0.15), (0.5, 0.48, 0.46))))
    shade = (canvas.grain * 0.15).add_(1).unsqueeze(1)
    return Layer(soft.mul_(hair).mul_(density), (tone * shade).clamp_(0, 1))


def _shadow(canvas: Canvas) -> Layer:
    """Draw a soft-edged dark half of the image, or a dark disc."""
    draws = canvas.draws
    across, down, place, strength, soft = draws.between_each((-1, 1), (-1, 1), (-0.8, 0.8), (0.2, 0.65), (0.03, 0.6))
    radius = draws.between(0.4, 1.2)
    half = canvas.affine(across, down, place)
    disc = norm(canvas.u - across, canvas.v - 0.5 - down).sub_(radius)
    distance = torch.where(draws.unit() < 0.6, half, disc)
    alpha = (distance / -soft).add_(0.5).clamp_(0, 1).mul_(strength)
    return Layer(alpha, torch.zeros_like(alpha).unsqueeze(1).expand(-1, canvas.channels, -1, -1).clone())


def _glare(canvas: Canvas) -> Layer:
    """Draw a bright spot that fades outwards."""
    draws = canvas.draws
    u, v, radius, strength = draws.between_each((-1.3, 1.3), (-1.2, 1.8), (0.4, 1.8), (0.2, 0.85))
    fade = norm(canvas.u - u, canvas.v - v).div_(-radius).add_(1).clamp_min_(0)
    alpha = (fade * fade).mul_(strength)
    colour = canvas.paint(draws.colour(0.8, 1.0))
    return Layer(alpha, colour.expand(-1, -1, *alpha.shape[1:]).clone())


_WORN = (Kind("glasses", None, _glasses), Kind("beard", None, _beard))
_CAST = (Kind("shadow", None, _shadow), Kind("glare", None, _glare))
