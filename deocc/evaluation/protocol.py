"""What a test compares: every face with every other, the pairs of a list in folds, or probes with given galleries.

A protocol speaks of images by their position in the face set. `cross` compares clean with masked faces, `within` the members of one set
with each other: of a gallery, clean with clean; of probes, masked with masked.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.identification import cmc, rank1
from deocc.evaluation.verification import PairScores, pair_scores, within_scores

MAX_PAIRS = 5_000_000
"""Pairs that `AllPairs` scores in a comparison. OURS: some 200 MB; the embedded faces need 2.5 million at most."""

_PLACES = 20
"""Ranks of a CMC curve."""


class AllPairs:
    """Every face against every other but the ones made from the same image; rank-1 with one clean image a person."""

    images: NDArray[np.int64] | None = None
    """The positions of the images to embed, ascending; None for all of the split."""

    def narrow(self, embeddings: Mapping[str, EmbeddingSet], most: int | None = None) -> dict[str, EmbeddingSet]:
        """Keep the people of the lowest numbers, as many as keep every comparison within `most` pairs but at least two.

        The same people are kept in every set, so that rows stay comparable.

        Args:
            embeddings: galleries and probes of a test, by any name.
            most: pairs of the largest comparison; default `MAX_PAIRS`.
        """
        people = torch.unique(torch.cat([members.identity for members in embeddings.values()]))
        pairs = _largest_comparison(list(embeddings.values()), people)
        kept = people[: max(2, int((pairs <= (MAX_PAIRS if most is None else most)).sum()))]
        if len(kept) == len(people):
            return dict(embeddings)
        return {name: members.take(torch.isin(members.identity, kept)) for name, members in embeddings.items()}

    def cross(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
        """Clean gallery faces against masked probes of other images."""
        return pair_scores(gallery, probe)

    def within(self, members: EmbeddingSet) -> PairScores:
        """Every two members of different images and equal draw (`EmbeddingSet.draw`)."""
        return within_scores(members)

    def repeats(self, members: EmbeddingSet) -> tuple[float, float]:
        """How many times `cross`, and `within`, compare the same two images under other masks, where `members` are the probes."""
        masks, draws = _masks(members)
        return masks, masks**2 / draws

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """`rank1` and `cmc`, the share of probes whose person is among the 1, 2, ... most similar gallery faces."""
        people = len(torch.unique(gallery.identity))
        return {"rank1": rank1(gallery, probe), "cmc": cmc(gallery, probe, min(_PLACES, people)).tolist()}


class ListedPairs(AllPairs):
    """The pairs of a list, as of LFW, CFP-FP, AgeDB or MFR2.

    `cross` compares the clean first face of a pair with the masked second one; `within` two masked faces of equal draw, which are of equal
    kind unless each image carries kinds of its own (`EmbeddingSet.groups`). Which face is masked is our choice: the paper does not tell.
    There is no identification.

    Args:
        first: (N,) positions of the first images in the face set.
        second: (N,) positions of the second images.
        same: (N,) bool, whether both show one person.
        fold: (N,) fold numbers from 0, for a threshold chosen on the other folds; all 0 where the list has none.

    Raises:
        ValueError: the shapes are not all (N,), or N is 0.
    """

    def __init__(
        self, first: NDArray[np.int64], second: NDArray[np.int64], same: NDArray[np.bool_], fold: NDArray[np.int64]
    ) -> None:
        shapes = {array.shape for array in (first, second, same, fold)}
        if len(shapes) != 1 or len(first.shape) != 1 or len(first) == 0:
            raise ValueError(
                f"expected first, second, same and fold of one shape (N,) with N above 0, got {sorted(shapes)}"
            )
        self.first, self.second, self.same, self.fold = (
            torch.as_tensor(array) for array in (first, second, same, fold)
        )
        self.images = np.unique(np.concatenate([first, second])).astype(np.int64)

    def __len__(self) -> int:
        """N, the number of pairs."""
        return len(self.first)

    def cross(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
        """The listed pairs under every mask of the second face; pairs with a face that was not embedded are left out."""
        return self._joined((gallery, part) for part in _comparable(probe))

    def narrow(self, embeddings: Mapping[str, EmbeddingSet], most: int | None = None) -> dict[str, EmbeddingSet]:
        """Everybody: the length of the list is given."""
        return dict(embeddings)

    def repeats(self, members: EmbeddingSet) -> tuple[float, float]:
        """As in `AllPairs`; `within` compares a pair once for each mask of an image."""
        masks, _ = _masks(members)
        return masks, masks

    def within(self, members: EmbeddingSet) -> PairScores:
        """The listed pairs, both faces from `members`, under masks of equal draw and, unless kinds are mixed, of equal kind."""
        return self._joined((part, part) for part in _comparable(members))

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """Nothing: a list of pairs has no gallery."""
        return {}

    def _joined(self, sides: Iterator[tuple[EmbeddingSet, EmbeddingSet]]) -> PairScores:
        parts = [self._listed(first, second) for first, second in sides] or [_NO_PAIRS]
        return PairScores(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _listed(self, first: EmbeddingSet, second: EmbeddingSet) -> PairScores:
        """The pairs between two sets that hold each image once at most."""
        size = int(max(first.index.max(), second.index.max(), self.first.max(), self.second.max())) + 1
        one, other = _places(first, size)[self.first], _places(second, size)[self.second]
        there = (one >= 0) & (other >= 0)
        one, other = one[there], other[there]
        similarity = (first.embedding[one].float() * second.embedding[other].float()).sum(1)
        return PairScores(similarity, self.same[there], first.identity[one], second.identity[other], self.fold[there])


class Galleries(AllPairs):
    """Probes with real occluders against named galleries, as on AR: protocol 1 has several clean images a person, protocol 2 one.

    Args:
        galleries: by the protocol's name, the positions of its gallery images in the face set. The first one is the row's `rank1`.

    Raises:
        ValueError: no gallery, or an empty one.
    """

    def __init__(self, galleries: Mapping[str, NDArray[np.int64]]) -> None:
        if not galleries or any(len(positions) == 0 for positions in galleries.values()):
            raise ValueError(
                f"expected galleries with images, got { ({name: len(where) for name, where in galleries.items()}) }"
            )
        self.galleries = {name: torch.as_tensor(positions) for name, positions in galleries.items()}

    def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
        """`rank1` and `cmc` with the first gallery, and `rank1_NAME` and `cmc_NAME` with each."""
        scores: dict[str, Any] = {}
        for name, positions in self.galleries.items():
            chosen = gallery.take(torch.isin(gallery.index, positions))
            places = min(_PLACES, len(torch.unique(chosen.identity)))
            curve = cmc(chosen, probe, places, images="all").tolist()
            scores |= {f"rank1_{name}": curve[0], f"cmc_{name}": curve}
        first = next(iter(self.galleries))
        return {"rank1": scores[f"rank1_{first}"], "cmc": scores[f"cmc_{first}"], **scores}


_NONE = torch.zeros(0, dtype=torch.int64)
_NO_PAIRS = PairScores(torch.zeros(0), _NONE.bool(), _NONE, _NONE, _NONE)


def _comparable(members: EmbeddingSet) -> Iterator[EmbeddingSet]:
    """The members by kind and draw, or by draw alone under mixed kinds: parts that contain each image at most once."""
    parts = torch.stack([members.groups()[:, 1], members.draw()], 1)
    for part in torch.unique(parts, dim=0):
        yield members.take((parts == part).all(1))


def _places(members: EmbeddingSet, size: int) -> Tensor:
    """(size,) the row of each image in `members`; -1 for one that is not there."""
    places = torch.full((size,), -1)
    places[members.index] = torch.arange(len(members))
    return places


def _masks(members: EmbeddingSet) -> tuple[float, float]:
    """The mean number of masks an image carries, and of draws in a group (`EmbeddingSet.groups`)."""
    images = max(1, len(torch.unique(members.index)))
    groups = max(1, len(torch.unique(members.groups(), dim=0)))
    return max(1.0, len(members) / images), max(1.0, len(members) / groups)


def _largest_comparison(sets: Sequence[EmbeddingSet], people: Tensor) -> Tensor:
    """(P,) the pairs of the largest comparison among the first 1, 2, ..., P people, images with themselves not yet taken out."""
    counts = torch.stack([_counts(members.identity, people) for members in sets])
    clean = torch.tensor([not bool((members.kind >= 0).any()) for members in sets])
    crossed = (counts * clean[:, None]).amax(0) * counts.amax(0)
    return torch.stack([crossed, *(_square(members, people) for members in sets)]).amax(0)


def _counts(identity: Tensor, people: Tensor) -> Tensor:
    """(P,) how many of these images the first 1, 2, ..., P people have."""
    return torch.searchsorted(identity.sort().values, people, right=True)


def _square(members: EmbeddingSet, people: Tensor) -> Tensor:
    """(P,) the pairs that `within_scores` would compare among the first 1, 2, ..., P people, half of its diagonal with them."""
    draw = members.draw()
    counts = [_counts(members.identity[draw == number], people) for number in torch.unique(draw)]
    return torch.stack([torch.zeros_like(people), *counts]).square().sum(0) // 2
