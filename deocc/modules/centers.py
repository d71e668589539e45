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
        embeddings: (N, D), the teacher's raw ones; read in parts, so that they may lie on disk. A row of zeros is that of an image which
            could not be read, and counts nowhere.
        identity: (N,) whose face each is, 0 to K - 1 without a gap; -1 leaves a row out.
        device: where the results go.

    Returns:
        (D,), the mean of the people's mean raw embeddings; (K, D) unit vectors, the direction of the mean of a person's centred embeddings,
        0 for a person of whom no image could be read.
    """
    taken = np.flatnonzero(identity >= 0)
    parts = [(rows, torch.from_numpy(identity[rows])) for rows in np.array_split(taken, -(-len(taken) // _CHUNK))]
    counts = torch.zeros(int(identity.max()) + 1)
    sums = torch.zeros(len(counts), embeddings.shape[1])
    for rows, people in parts:
        raw = torch.from_numpy(embeddings[rows])
        sums.index_add_(0, people, raw)
        counts.index_add_(0, people, raw.any(1).float())
    center = (sums / counts[:, None])[counts > 0].mean(0)
    directions = torch.zeros_like(sums)
    for rows, people in parts:
        raw = torch.from_numpy(embeddings[rows])
        known = raw.any(1)
        directions.index_add_(0, people[known], centred(raw[known], center))
    return center.to(device), F.normalize(directions, dim=1).to(device)
