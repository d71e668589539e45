"""Identification: which person of the gallery is it? One clean gallery image a person, as in protocol 2 of the AR evaluations."""

import torch
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet

_CHUNK = 4096  # probes compared at a time


def rank1(gallery: EmbeddingSet, probe: EmbeddingSet) -> float:
    """The share of probes whose own person's gallery face is the most similar. See `cmc`."""
    return float(cmc(gallery, probe, 1)[0])


def cmc(gallery: EmbeddingSet, probe: EmbeddingSet, k: int) -> Tensor:
    """Cumulative match characteristic: the share of probes whose person is among the 1, 2, ..., `k` most similar gallery faces.

    Each person is represented by the clean image of the lowest index; probes made from that very image are left out. Another person's face
    that is equally similar counts as more similar, so that a recogniser that maps all faces to one point finds nobody.

    Returns:
        (k,) float64; NaN where no probe remains.

    Raises:
        ValueError: `k` is below 1, or a probe's person is not in the gallery.
    """
    if k < 1:
        raise ValueError(f"k is {k}: choose 1 or more")
    one_each = _one_image_each(gallery)
    missing = set(probe.identity.tolist()) - set(one_each.identity.tolist())
    if missing:
        raise ValueError(f"{len(missing)} people of the probes (first: {min(missing)}) have no gallery face: add one clean image of each")
    rank = _ranks(one_each, probe.take(~torch.isin(probe.index, one_each.index)))
    return torch.stack([(rank <= place).double().mean() for place in range(1, k + 1)])


def _one_image_each(gallery: EmbeddingSet) -> EmbeddingSet:
    """Each person's image of the lowest index, by person."""
    by_index = gallery.take(gallery.index.argsort(stable=True))
    by_person = by_index.take(by_index.identity.argsort(stable=True))
    first = torch.ones_like(by_person.identity, dtype=torch.bool)
    first[1:] = by_person.identity[1:] != by_person.identity[:-1]
    return by_person.take(first)


def _ranks(gallery: EmbeddingSet, probe: EmbeddingSet) -> Tensor:
    """(N,) the place, from 1, of each probe's person in a gallery that is sorted by person and holds each once."""
    place = torch.searchsorted(gallery.identity, probe.identity)
    chunks = zip(torch.split(probe.embedding.float(), _CHUNK), torch.split(place, _CHUNK), strict=True)
    return torch.cat([_rank(embedding @ gallery.embedding.float().T, own) for embedding, own in chunks])


def _rank(similarity: Tensor, own: Tensor) -> Tensor:
    """(N,) how many columns of `similarity` (N, people) are at least as large as column `own`, itself included."""
    return (similarity >= similarity.gather(1, own[:, None])).sum(1)
