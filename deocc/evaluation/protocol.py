"""Test protocols: all pairs of faces, the pairs of a list in folds, or probes with given galleries; identification.

A protocol refers to images by their position in the face set. `cross` compares clean with masked faces. `within`
compares the members of one set: clean with clean for a gallery, masked with masked for probes.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.verification import PairScores

MAX_PAIRS = 5_000_000  # that `AllPairs` scores in a comparison, about 200 MB. Our choice
_MAX_RANK = 20  # of a CMC curve
_CHUNK = 4096  # probes identified at a time
_Numbers = NDArray[np.int64]
_Flags = NDArray[np.bool_]


class AllPairs:
    """Every face against every other, except faces made from the same image; rank-1 with a clean image per identity."""

    images: _Numbers | None = None  # positions of the images to embed, ascending; None for the whole split

    def narrow(self, embeddings: Mapping[str, EmbeddingSet], most: int | None = None) -> dict[str, EmbeddingSet]:
        """Restrict all sets to the same identities so that no comparison has more than `most` pairs.

        The identities with the lowest numbers are kept, at least two. The default of `most` is `MAX_PAIRS`.
        """
        identities = torch.unique(torch.cat([members.identity for members in embeddings.values()]))

        def cumulative_counts(identity: Tensor) -> Tensor:  # number of images of the first 1, 2, ..., P identities
            return torch.searchsorted(identity.sort().values, identities, right=True)

        counts = torch.stack([cumulative_counts(members.identity) for members in embeddings.values()])
        clean = torch.tensor([not bool((members.kind >= 0).any()) for members in embeddings.values()])
        pairs = (counts * clean[:, None]).amax(0) * counts.amax(0)
        for members in embeddings.values():
            draw, within = members.draw(), torch.zeros_like(identities)
            for number in torch.unique(draw):
                within += cumulative_counts(members.identity[draw == number]).square()
            pairs = torch.maximum(pairs, within // 2)
        kept = identities[: max(2, int((pairs <= (MAX_PAIRS if most is None else most)).sum()))]
        if len(kept) == len(identities):
            return dict(embeddings)
        return {name: members.take(torch.isin(members.identity, kept)) for name, members in embeddings.items()}

    def cross(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
        """Compare every clean gallery face with every masked probe, except probes made from the same image."""
        return _compare(gallery, probe, gallery.index[:, None] != probe.index[None])

    def within(self, members: EmbeddingSet) -> PairScores:
        """Compare all pairs of members of different images and equal draw (`EmbeddingSet.draw`).

        For a gallery, which has one draw, these are all pairs of images. Restricting probes to equal draws (our choice)
        keeps the number of pairs near (images x kinds)^2 / 2 per draw.
        """
        draw = members.draw()
        parts = [members.take(draw == number) for number in range(int(draw.max()) + 1)] if len(members) else [members]
        scores = [_compare(part, part, (part.index[:, None] != part.index[None]).triu(1)) for part in parts]
        return PairScores(*(torch.cat(column) for column in zip(*(score[:4] for score in scores), strict=True)))

    def repeats(self, members: EmbeddingSet) -> tuple[float, float]:
        """Return how often `cross` and `within` compare the same two images with other masks, for given probes."""
        masks = max(1.0, len(members) / max(1, len(torch.unique(members.index))))
        draws = max(1.0, len(members) / max(1, len(torch.unique(members.groups(), dim=0))))
        return masks, masks**2 / draws

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """Return `rank1` and `cmc`, the share of probes identified at rank 1, 2, ..."""
        curve = cmc(gallery, probe, min(_MAX_RANK, len(torch.unique(gallery.identity)))).tolist()
        return {"rank1": curve[0], "cmc": curve}


class ListedPairs(AllPairs):
    """The pairs of a list, such as those of LFW, CFP-FP, AgeDB or MFR2; without identification.

    `cross` compares the clean first face of a pair with the masked second one. `within` compares two masked faces of
    equal draw, which have equal kinds unless each image has its own kinds (`EmbeddingSet.groups`). The paper does not
    say which face is masked; our choice.

    Args:
        first: (N,) positions of the first images in the face set, N at least 1.
        second: (N,) positions of the second images.
        same: (N,) bool, True for genuine pairs.
        fold: (N,) fold numbers from 0; all 0 if the list has no folds.
    """

    def __init__(self, first: _Numbers, second: _Numbers, same: _Flags, fold: _Numbers) -> None:
        self.first, self.second = torch.as_tensor(first), torch.as_tensor(second)
        self.same, self.fold = torch.as_tensor(same), torch.as_tensor(fold)
        self.images = np.unique(np.concatenate([first, second])).astype(np.int64)

    def __len__(self) -> int:
        return len(self.first)

    def narrow(self, embeddings: Mapping[str, EmbeddingSet], most: int | None = None) -> dict[str, EmbeddingSet]:
        """Return all sets unchanged: the length of the list is fixed."""
        return dict(embeddings)

    def cross(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
        """Compare the listed pairs with every mask of the second face; pairs with a missing face are left out."""
        return self._listed(gallery, probe)

    def within(self, members: EmbeddingSet) -> PairScores:
        """Compare the listed pairs, both faces masked with equal draw and, unless kinds are mixed, equal kind."""
        return self._listed(None, members)

    def repeats(self, members: EmbeddingSet) -> tuple[float, float]:
        """See `AllPairs.repeats`; `within` compares a pair once for each mask of an image."""
        masks = super().repeats(members)[0]
        return masks, masks

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """Return nothing: a list of pairs has no gallery."""
        return {}

    def _listed(self, gallery: EmbeddingSet | None, members: EmbeddingSet) -> PairScores:
        """Compare the listed pairs of a gallery, or else of the members, with the members of each kind and draw."""
        empty = torch.zeros(0, dtype=torch.int64)
        scores = [PairScores(torch.zeros(0), empty.bool(), empty, empty, empty)]
        keys = torch.stack([members.groups()[:, 1], members.draw()], 1)
        for key in torch.unique(keys, dim=0):
            second = members.take((keys == key).all(1))  # contains each image at most once
            first = second if gallery is None else gallery
            size = int(torch.cat([first.index, second.index, self.first, self.second]).max()) + 1
            row, column = _rows_by_image(first, size)[self.first], _rows_by_image(second, size)[self.second]
            present = (row >= 0) & (column >= 0)
            row, column = row[present], column[present]
            similarity = (first.embedding[row].float() * second.embedding[column].float()).sum(1)
            identities = first.identity[row], second.identity[column]
            scores.append(PairScores(similarity, self.same[present], *identities, self.fold[present]))
        return PairScores(*(torch.cat(column) for column in zip(*scores, strict=True)))


class OccludedPairs(ListedPairs):
    """Listed pairs of images that are bare or really occluded, as on MFR2.

    `cross` compares a bare and an occluded image, in this order whatever the order in the list; `within` compares two
    bare images of a gallery, or two occluded ones of the probes. Besides the arguments of `ListedPairs` it takes
    `occluded`, (images of the face set,) bool, True with a real occluder.
    """

    def __init__(self, first: _Numbers, second: _Numbers, same: _Flags, fold: _Numbers, occluded: _Flags) -> None:
        swapped = occluded[first] & ~occluded[second]
        super().__init__(np.where(swapped, second, first), np.where(swapped, first, second), same, fold)


class Galleries(AllPairs):
    """Probes with real occluders against named galleries, as on AR.

    Protocol 1 has several clean images per identity, protocol 2 one.

    Args:
        galleries: by protocol name, the positions of the gallery images in the face set, at least one gallery with one
            image each. The first one gives `rank1`.
    """

    def __init__(self, galleries: Mapping[str, _Numbers]) -> None:
        self.galleries = {name: torch.as_tensor(positions) for name, positions in galleries.items()}

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """Return `rank1` and `cmc` with the first gallery, and `rank1_NAME` and `cmc_NAME` with each gallery."""
        scores: dict[str, Any] = {}
        for name, positions in self.galleries.items():
            chosen = gallery.take(torch.isin(gallery.index, positions))
            ranks = min(_MAX_RANK, len(torch.unique(chosen.identity)))
            curve = cmc(chosen, probe, ranks, images="all").tolist()
            scores |= {f"rank1_{name}": curve[0], f"cmc_{name}": curve}
        first = next(iter(self.galleries))
        return {"rank1": scores[f"rank1_{first}"], "cmc": scores[f"cmc_{first}"], **scores}


def cmc(gallery: EmbeddingSet, probe: EmbeddingSet, k: int, images: Literal["first", "all"] = "first") -> Tensor:
    """Compute the share of probes whose identity is among the 1, 2, ..., `k` most similar identities of the gallery.

    Probes made from a gallery image that is used are left out. Another identity with the same similarity counts as more
    similar, so that a recogniser that maps all faces to one point identifies none. An identity is represented by its
    image with the lowest index (`images` "first") or by its most similar image ("all"). The result is (k,) float64, NaN
    if no probe remains. Raises ValueError if the identity of a probe is not in the gallery.
    """
    if missing := set(probe.identity.tolist()) - set(gallery.identity.tolist()):
        lacking = f"{len(missing)} people of the probes (first: {min(missing)})"
        raise ValueError(f"{lacking} have no gallery face: add one clean image of each")
    if images == "first":
        gallery = gallery.take(gallery.index.argsort(stable=True))
        people, person = torch.unique(gallery.identity, return_inverse=True)
        rows = torch.arange(len(gallery))
        gallery = gallery.take(torch.full_like(people, len(gallery)).scatter_reduce(0, person, rows, "amin"))
    probe = probe.take(~torch.isin(probe.index, gallery.index))
    identities, column = torch.unique(gallery.identity, return_inverse=True)
    own = torch.searchsorted(identities, probe.identity)
    ranks = []
    for embedding, place in zip(probe.embedding.float().split(_CHUNK), own.split(_CHUNK), strict=True):
        similarity = embedding @ gallery.embedding.float().T
        best = similarity.new_full((len(similarity), len(identities)), -torch.inf)
        best = best.scatter_reduce(1, column.expand_as(similarity), similarity, "amax")  # per identity
        ranks.append((best >= best.gather(1, place[:, None])).sum(1))
    rank = torch.cat(ranks)
    return torch.stack([(rank <= place).double().mean() for place in range(1, k + 1)])


def _rows_by_image(members: EmbeddingSet, size: int) -> Tensor:
    """Return (size,) the row of each image in `members`, -1 for images that are not there."""
    rows = torch.full((size,), -1)
    rows[members.index] = torch.arange(len(members))
    return rows


def _compare(first: EmbeddingSet, second: EmbeddingSet, allowed: Tensor) -> PairScores:
    """Compare the pairs that are True in `allowed` (len(first), len(second)), row by row."""
    row, column = allowed.nonzero(as_tuple=True)
    similarity = (first.embedding.float() @ second.embedding.float().T)[row, column]
    first_identity, second_identity = first.identity[row], second.identity[column]
    return PairScores(similarity, first_identity == second_identity, first_identity, second_identity)
