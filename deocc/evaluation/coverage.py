"""Groups of probes by how much of the crop their masks cover."""

import torch
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet

DECILES = 10


def decile_edges(coverage: Tensor) -> Tensor:
    """(11,) float64: the 0th, 10th, ... 100th percentile of the known coverages (N,); NaN where none is known."""
    known = coverage[~coverage.isnan()].double()
    if len(known) == 0:
        return torch.full((DECILES + 1,), torch.nan, dtype=torch.float64)
    return known.quantile(torch.linspace(0, 1, DECILES + 1, dtype=torch.float64))


def coverage_deciles(coverage: Tensor, edges: Tensor | None = None) -> Tensor:
    """(N,) int64: the decile 0 to 9 of each coverage (N,), -1 for NaN, an unknown one.

    A decile holds its lower edge, the last one its upper edge too. Equal coverages are never parted: where many are equal, deciles differ
    in size and some are empty. Coverages beyond the edges fall into the first or last decile.

    >>> coverage_deciles(torch.tensor([0.3, torch.nan, 0.1, 0.2])).tolist()
    [9, -1, 0, 5]

    Args:
        coverage: (N,), NaN where unknown.
        edges: (11,) as of `decile_edges`, so that several sets are cut alike; None: those of `coverage`.
    """
    edges = decile_edges(coverage) if edges is None else edges
    decile = torch.bucketize(coverage.double(), edges[1:-1], right=True)
    return decile.masked_fill(coverage.isnan(), -1)


def by_coverage(probe: EmbeddingSet, edges: Tensor | None = None) -> dict[int, EmbeddingSet]:
    """The probes of each decile that has any, by its number; those of unknown coverage are left out. `edges` as in `coverage_deciles`."""
    decile = coverage_deciles(probe.coverage, edges)
    return {number: probe.take(decile == number) for number in torch.unique(decile[decile >= 0]).tolist()}
