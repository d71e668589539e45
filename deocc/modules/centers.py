"""Where the training people lie in the teacher's space."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deocc.modules.comparison import centred

_CHUNK = 16384  # rows: 32 MiB of 512 numbers each


def identity_centers(embeddings: NDArray[np.float32], identity: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean over people, by which embeddings are centred, and every person's centre, from clean faces.

    Args:
        embeddings: (N, D), the teacher's raw ones; read in parts, so that they may lie on disk.
        identity: (N,) whose face each is, 0 to K - 1 without a gap; -1 leaves a row out.
        device: where the results go.

    Returns:
        (D,), the mean of the people's mean raw embeddings; (K, D) unit vectors, the direction of the mean of a person's centred embeddings.
    """
    taken = np.flatnonzero(identity >= 0)
    parts = [(rows, torch.from_numpy(identity[rows])) for rows in np.array_split(taken, -(-len(taken) // _CHUNK))]
    counts = torch.from_numpy(np.bincount(identity[taken]))
    sums = torch.zeros(len(counts), embeddings.shape[1])
    for rows, people in parts:
        sums.index_add_(0, people, torch.from_numpy(embeddings[rows]))
    center = (sums / counts[:, None]).mean(0)
    directions = torch.zeros_like(sums)
    for rows, people in parts:
        directions.index_add_(0, people, centred(torch.from_numpy(embeddings[rows]), center))
    return center.to(device), F.normalize(directions, dim=1).to(device)
