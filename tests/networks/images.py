"""Random faces and box masks."""

import torch
from torch import Tensor


def random_faces(batch: int = 2, height: int = 40, width: int = 40) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def box_mask(face: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Cover columns left to right - 1 of rows top to bottom - 1."""
    mask = torch.zeros_like(face[:, :1])
    mask[:, :, top:bottom, left:right] = 1
    return mask
