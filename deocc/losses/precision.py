"""The precision in which every loss is computed."""

import torch
from torch import Tensor


def loss_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for tensors of float32 or less, float64 for float64: no loss is summed in half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in its `loss_dtype`, differentiably."""
    return tensor.to(loss_dtype(tensor))
