"""Where the training people lie in the teacher's space."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.batch import FaceBatch
from deocc.modules.comparison import centred
from deocc.networks.embedder import Embedder


@torch.no_grad()
def identity_centers(teacher: Embedder, batches: Iterable[FaceBatch], device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean over people, by which embeddings are centred, and every person's centre, from clean faces.

    Args:
        teacher: frozen, on `device`.
        batches: all faces of the training people, numbered 0 to K - 1 without a gap.
        device: where the results go.

    Returns:
        (D,), the mean of the people's mean raw embeddings; (K, D) unit vectors, the direction of the mean of a person's centred embeddings.
    """
    raw, identity = [], []
    with torch.autocast(device.type, enabled=False):
        for batch in batches:
            raw.append(teacher(batch["face"].to(device)).float().cpu())  # millions of them would not fit beside the networks
            identity.append(batch["identity"].cpu())
    people = torch.cat(identity)
    sums = torch.zeros(int(people.max()) + 1, raw[0].shape[1])
    for embeddings, owners in zip(raw, identity, strict=True):
        sums.index_add_(0, owners, embeddings)
    center = (sums / torch.bincount(people)[:, None]).mean(0)
    directions = torch.zeros_like(sums)
    for embeddings, owners in zip(raw, identity, strict=True):
        directions.index_add_(0, owners, centred(embeddings, center))
    return center.to(device), F.normalize(directions, dim=1).to(device)
