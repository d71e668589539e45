"""A batch taken in parts, whose gradients add up to that of the whole batch, and of the batches of all processes together.

With n images in all of W processes, DDP averages the processes' gradients: the gradient of a mean over the n images is that of the sum,
over parts and processes, of a part's own mean times W (images of the part) / n, its share. A mean that only some images enter has a share
of its own: that of masked l1 over covered pixels leaves out bare faces, and may find more of them in one part than in another.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from deocc.batch import MaskedFaceBatch


class Part(NamedTuple):
    """Some images of a batch, and by what their own means count; the shares are scalars, 1 where the part is everything."""

    batch: MaskedFaceBatch
    images: Tensor
    """Of a mean over images."""
    covered: Tensor
    """Of a mean over images that have covered pixels."""
    visible: Tensor
    """Of a mean over images that have visible pixels."""


def take_apart(batch: MaskedFaceBatch, number: int, mean_over_processes: Callable[[Tensor], Tensor]) -> list[Part]:
    """As many parts as asked for, of equal size but for the last; fewer where a short batch does not fill them.

    Args:
        batch: of which every key holds one row an image.
        number: of parts.
        mean_over_processes: a tensor's mean over all processes, which all of them call once a batch.
    """
    pieces = {key: cast(Tensor, value).chunk(number) for key, value in batch.items()}
    parts = [cast(MaskedFaceBatch, dict(zip(pieces, values, strict=True))) for values in zip(*pieces.values(), strict=True)]
    counts = torch.stack([_counts(part["mask"]) for part in parts])
    shares = counts / mean_over_processes(counts.sum(0)).clamp_min(torch.finfo(counts.dtype).tiny)
    return [Part(part, *row) for part, row in zip(parts, shares, strict=True)]


def _counts(mask: Tensor) -> Tensor:
    """(3,): images, images that have covered pixels, images that have visible ones."""
    covered, visible = ((weight.flatten(1) > 0).any(1).sum() for weight in (mask, 1 - mask))
    return torch.stack([covered.new_tensor(len(mask)), covered, visible]).float()
