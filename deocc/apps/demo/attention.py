"""Where the generator's attention branch looks, as a picture."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deocc.networks import Deoccluder
from deocc.networks.generator import STRIDE, Generator

_LEAST_HEAT, _MOST_HEAT = 0.3, 0.9  # how much of the picture the colours are where it is dark and where it is bright. OURS


def attention_map(generator: Generator, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """How much of the covered part is drawn from each place: the mean of `Generator.attend` over the patches that the mask touches. OURS.

    Args:
        generator: with or without an attention branch.
        masked_face: (3, S, S) in [-1, 1].
        mask: (1, S, S), 1 = covered.

    Returns:
        (S, S), its largest value 1; None without a branch, where nothing is covered, and where no patch is wholly visible.
    """
    if generator.attention_branch is None:
        return None
    covered = F.max_pool2d(mask[None], STRIDE, ceil_mode=True)[0, 0] > 0
    with torch.no_grad():
        drawn = generator.attend(masked_face[None], mask[None])[0][covered].sum(0)
    if not bool(drawn.max() > 0):
        return None
    size = mask.shape[-1]
    fine = F.interpolate(drawn[None, None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[0, 0, :size, :size]
    return fine / fine.max()


def deoccluder_attention(deoccluder: Deoccluder, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """`attention_map` of a de-occluder's generator at the side that it works at, enlarged to that of the face; (S, S)."""
    side = masked_face.shape[-1]
    small = min(side, deoccluder.size or side)
    if small < side:
        masked_face = F.interpolate(masked_face[None], (small, small), mode="bilinear", antialias=True, align_corners=False)[0]
        mask = F.adaptive_max_pool2d(mask[None], small)[0]
    heat = attention_map(deoccluder.generator, masked_face, mask)
    if heat is None or small == side:
        return heat
    return F.interpolate(heat[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]


def heat_picture(heat: Tensor, face: Tensor) -> NDArray[np.uint8]:
    """Colours from dark to bright over a grey face: heat (S, S) in [0, 1], face (3, S, S) in [-1, 1] -> (S, S, 3) RGB."""
    levels = (heat.cpu() * 255).round().byte().numpy()
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = (face.mean(0).cpu().numpy()[..., None] + 1) * 127.5
    share = _LEAST_HEAT + (_MOST_HEAT - _LEAST_HEAT) * heat.cpu().numpy()[..., None]
    return np.asarray((share * colours + (1 - share) * grey).round().clip(0, 255), dtype=np.uint8)
