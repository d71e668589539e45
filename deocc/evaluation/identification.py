"""Identification: which person of the gallery is it? By one clean gallery image a person or by several, as in protocols 2 and 1 on AR."""

from typing import Literal

import torch
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet

_CHUNK = 4096  # probes compared at a time


def rank1(gallery: EmbeddingSet, probe: EmbeddingSet) -> float:
    """The share of probes whose own person's gallery face is the most similar. See `cmc`."""
    return float(cmc(gallery, probe, 1)[0])


def cmc(gallery: EmbeddingSet, probe: EmbeddingSet, k: int, images: Literal["first", "all"] = "first") -> Tensor:
    """Cumulative match characteristic: the share of probes whose person is among the 1, 2, ..., `k` most similar of the gallery.

    With the images "first", each person is represented by the clean image of the lowest index; with "all", by every one, and is as similar
    as the most similar of them. Probes made from an image that represents a person are left out. Another person who is equally similar
    counts as more similar, so that a recogniser that maps all faces to one point finds nobody.

    Returns:
        (k,) float64; NaN where no probe remains.

    Raises:
        ValueError: `k` is below 1, `images` is another word, or a probe's person is not in the gallery.
    """
    if k < 1:
        raise ValueError(f"k is {k}: choose 1 or more")
    if images not in ("first", "all"):
        raise ValueError(f'images is "{images}": choose "first" (one gallery image a person) or "all"')
    if missing := set(probe.identity.tolist()) - set(gallery.identity.tolist()):
        raise ValueError(
            f"{len(missing)} people of the probes (first: {min(missing)}) have no gallery face: add one clean image of each"
        )
    chosen = _one_image_each(gallery) if images == "first" else gallery
    rank = _ranks(chosen, probe.take(~torch.isin(probe.index, chosen.index)))
    return torch.stack([(rank <= place).double().mean() for place in range(1, k + 1)])


def _one_image_each(gallery: EmbeddingSet) -> EmbeddingSet:
    """Each person's image of the lowest index, by person."""
    by_index = gallery.take(gallery.index.argsort(stable=True))
    by_person = by_index.take(by_index.identity.argsort(stable=True))
    first = torch.ones_like(by_person.identity, dtype=torch.bool)
    first[1:] = by_person.identity[1:] != by_person.identity[:-1]
    return by_person.take(first)


def _ranks(gallery: EmbeddingSet, probe: EmbeddingSet) -> Tensor:
    """(N,) the place, from 1, of each probe's person among the people of the gallery."""
    people, person = torch.unique(gallery.identity, return_inverse=True)
    place = torch.searchsorted(people, probe.identity)
    chunks = zip(torch.split(probe.embedding.float(), _CHUNK), torch.split(place, _CHUNK), strict=True)
    return torch.cat(
        [_rank(_by_person(embedding @ gallery.embedding.float().T, person), own) for embedding, own in chunks]
    )


def _by_person(similarity: Tensor, person: Tensor) -> Tensor:
    """(N, people) the largest similarity to an image of each person, from (N, images) and each image's person from 0."""
    nobody = similarity.new_full((len(similarity), int(person.max()) + 1), -torch.inf)
    return nobody.scatter_reduce(1, person.expand_as(similarity), similarity, "amax")


def _rank(similarity: Tensor, own: Tensor) -> Tensor:
    """(N,) how many columns of `similarity` (N, people) are at least as large as column `own`, itself included."""
    return (similarity >= similarity.gather(1, own[:, None])).sum(1)
