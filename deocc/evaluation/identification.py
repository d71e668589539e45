"""Closed-set identification: rank-1 and the cumulative match characteristic (CMC).

The gallery has one clean image or several images per identity, as in protocols 2 and 1 on AR.
"""

from typing import Literal

import torch
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet

_CHUNK = 4096  # probes compared at a time


def rank1(gallery: EmbeddingSet, probe: EmbeddingSet) -> float:
    """Compute the share of probes for which the gallery face of the same identity is the most similar; see `cmc`."""
    return float(cmc(gallery, probe, 1)[0])


def cmc(gallery: EmbeddingSet, probe: EmbeddingSet, k: int, images: Literal["first", "all"] = "first") -> Tensor:
    """Compute the share of probes whose identity is among the 1, 2, ..., `k` most similar identities of the gallery.

    Probes made from a gallery image that is used are left out. Another identity with the same similarity counts as more
    similar, so that a recogniser that maps all faces to one point identifies none.

    Args:
        gallery: known faces.
        probe: faces to identify.
        k: largest rank.
        images: "first" represents an identity by its image with the lowest index, "all" by its most similar image.

    Returns:
        (k,) float64; NaN if no probe remains.

    Raises:
        ValueError: `k` is below 1, `images` is another word, or the identity of a probe is not in the gallery.
    """
    if k < 1:
        raise ValueError(f"k is {k}: choose 1 or more")
    if images not in ("first", "all"):
        raise ValueError(f'images is "{images}": choose "first" (one gallery image per identity) or "all"')
    if missing := set(probe.identity.tolist()) - set(gallery.identity.tolist()):
        raise ValueError(
            f"{len(missing)} people of the probes (first: {min(missing)}) have no gallery face: "
            "add one clean image of each"
        )
    chosen = _first_images(gallery) if images == "first" else gallery
    rank = _ranks(chosen, probe.take(~torch.isin(probe.index, chosen.index)))
    return torch.stack([(rank <= place).double().mean() for place in range(1, k + 1)])


def _first_images(gallery: EmbeddingSet) -> EmbeddingSet:
    """Return the image with the lowest index of each identity, sorted by identity."""
    by_index = gallery.take(gallery.index.argsort(stable=True))
    by_identity = by_index.take(by_index.identity.argsort(stable=True))
    first = torch.ones_like(by_identity.identity, dtype=torch.bool)
    first[1:] = by_identity.identity[1:] != by_identity.identity[:-1]
    return by_identity.take(first)


def _ranks(gallery: EmbeddingSet, probe: EmbeddingSet) -> Tensor:
    """Return (N,) the rank, from 1, of each probe's identity among the identities of the gallery."""
    identities, column = torch.unique(gallery.identity, return_inverse=True)
    own = torch.searchsorted(identities, probe.identity)
    ranks = []
    for embedding, place in zip(probe.embedding.float().split(_CHUNK), own.split(_CHUNK), strict=True):
        similarity = embedding @ gallery.embedding.float().T
        best = similarity.new_full((len(similarity), len(identities)), -torch.inf)
        best = best.scatter_reduce(1, column.expand_as(similarity), similarity, "amax")  # per identity
        ranks.append((best >= best.gather(1, place[:, None])).sum(1))
    return torch.cat(ranks)
