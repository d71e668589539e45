"""Verification accuracy over folds, the protocol of LFW [0]: the threshold for a fold's pairs is chosen on the pairs of the other folds.

[0] Huang et al., "Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments", University of
    Massachusetts, Amherst, Technical Report 07-49, 2007: the mean over ten folds, and its standard error with folds - 1 under the root.

The report leaves open which of equally good thresholds is meant. OURS: thresholds lie midway between two neighbouring similarities of the
other folds, or at plus or minus infinity, which accepts no pair or every one; among the best the highest, which accepts fewest.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from deocc.evaluation.embeddings import EmbeddingSet

FALSE_ACCEPT_RATES = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}
"""At which TAR is reported. OURS."""


class RocCurve(NamedTuple):
    """Operating points by falling threshold, T = distinct similarities + 1; the first accepts nothing."""

    far: Tensor
    """(T,) float64, rising from 0 to 1."""
    tar: Tensor
    """(T,) float64, rising from 0 to 1."""
    threshold: Tensor
    """(T,) float64, falling from infinity."""


class PairScores(NamedTuple):
    """N compared pairs of faces."""

    similarity: Tensor
    """(N,) float32."""
    same: Tensor
    """(N,) bool, whether both show one person."""
    first_person: Tensor
    """(N,) int64, the person of the gallery face, or of the first face of two probes."""
    second_person: Tensor
    """(N,) int64, the person of the probe, or of the second face."""
    fold: Tensor | None = None
    """(N,) int64, the fold of each pair; None where the protocol has no folds."""


def roc_curve(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> RocCurve:
    """The whole curve, from one sort in float64.

    Raises:
        ValueError: the shapes are not all (N,), or a similarity is not finite.
    """
    check_pairs(similarity, same, weight)
    score, order = similarity.detach().cpu().double().sort(descending=True)
    same = same.cpu()[order]
    weight = torch.ones_like(score) if weight is None else weight.cpu().double()[order]
    ends = torch.ones_like(same)
    ends[:-1] = score[1:] != score[:-1]
    start = torch.zeros(1, dtype=torch.float64)
    accepted = [torch.cat([start, (weight * chosen).cumsum(0)[ends]]) for chosen in (~same, same)]
    far, tar = (count / count[-1] for count in accepted)
    return RocCurve(far, tar, torch.cat([start + torch.inf, score[ends]]))


def equal_error_rate(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> float:
    """The rate at which FAR equals 1 - TAR, on the straight line between the two neighbouring points of the curve.

    >>> equal_error_rate(torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([True, False, True, False]))
    0.5
    """
    curve = roc_curve(similarity, same, weight)
    return float(curve_equal_error_rate(curve.far, curve.tar))


def curve_equal_error_rate(far: Tensor, tar: Tensor) -> Tensor:
    """The equal error rates of curves (..., T) that start at (0, 0) and end at (1, 1): shape (...)."""
    excess = far + tar - 1  # FAR - (1 - TAR), rising from -1 to 1
    after = _first_reaching(excess)
    before = (after - 1).clamp_min(0)
    low, high = (excess.gather(-1, place) for place in (before, after))
    far_low, far_high = (far.gather(-1, place) for place in (before, after))
    return (far_low - low / (high - low) * (far_high - far_low)).squeeze(-1)


def area_under_curve(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> float:
    """The area under TAR over FAR: the chance that a pair of one person is more similar than one of two, ties counting half."""
    return _area(roc_curve(similarity, same, weight))


def true_accept_rate(similarity: Tensor, same: Tensor, far: float, weight: Tensor | None = None) -> float:
    """TAR at the lowest threshold whose FAR is at most `far`; NaN where `far` of the pairs of different people is less than one pair.

    Raises:
        ValueError: `far` is not in (0, 1], or as in `roc_curve`.
    """
    return operating_point(roc_curve(similarity, same, weight), _negatives(same, weight), far)[0]


def verification_scores(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> dict[str, float]:
    """Every figure of this file from one sort: `eer`, `auc`, `tar@1e-1` to `tar@1e-4`, the thresholds `threshold@eer`, `threshold@1e-2`.

    A `tar@...` is NaN where the pairs cannot support it, see `true_accept_rate`. `threshold@eer` is the highest threshold at which FAR
    reaches 1 - TAR. `threshold@1e-2` belongs to `tar@1e-2`.
    """
    curve, negatives = roc_curve(similarity, same, weight), _negatives(same, weight)
    points = {name: operating_point(curve, negatives, far) for name, far in FALSE_ACCEPT_RATES.items()}
    eer = float(curve_equal_error_rate(curve.far, curve.tar))
    crossing = float(curve.threshold[_first_reaching(curve.far + curve.tar - 1)])
    return {
        "eer": eer,
        "auc": _area(curve),
        **{f"tar@{name}": tar for name, (tar, _) in points.items()},
        "threshold@eer": crossing if eer == eer else float("nan"),
        "threshold@1e-2": points["1e-2"][1],
    }


def operating_point(curve: RocCurve, negatives: int, far: float) -> tuple[float, float]:
    """TAR and threshold at `far`, as `true_accept_rate` defines them, on a curve that `negatives` pairs of different people made.

    Raises:
        ValueError: `far` is not in (0, 1].
    """
    if negatives < negatives_needed(far):
        return float("nan"), float("nan")
    place = int((curve.far <= far * (1 + 1e-12)).sum()) - 1  # rounding must not lose a FAR that equals `far`
    return float(curve.tar[place]), float(curve.threshold[place])


def negatives_needed(far: float) -> int:
    """The number of pairs of different people of which `far` is one pair.

    Raises:
        ValueError: `far` is not in (0, 1].
    """
    if not 0 < far <= 1:
        raise ValueError(f"a false accept rate of {far} was asked for: choose one above 0 and at most 1")
    return math.ceil((1 - 1e-9) / far)


def check_pairs(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> None:
    """Refuse pairs that cannot be scored.

    Raises:
        ValueError: the shapes are not all (N,), `same` is not bool, or a similarity is not finite.
    """
    shapes = [tuple(value.shape) for value in (similarity, same, weight) if value is not None]
    if similarity.ndim != 1 or len(set(shapes)) > 1 or same.dtype != torch.bool:
        raise ValueError(
            f"expected similarity, bool same and weight of one shape (N,), got {shapes} and same of {same.dtype}"
        )
    if not bool(similarity.isfinite().all()):
        raise ValueError(
            f"{int((~similarity.isfinite()).sum())} of {len(similarity)} similarities are not finite: check the embeddings"
        )


def pair_scores(gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
    """Every gallery face against every probe, except a probe made from the very image; N at most len(gallery) x len(probe)."""
    return _compare(gallery, probe, gallery.index[:, None] != probe.index[None])


def within_scores(members: EmbeddingSet) -> PairScores:
    """Every unordered pair of two images of one set whose masks are of equal draw (`EmbeddingSet.draw`), whatever their kinds.

    For a gallery, which has one draw, that is every pair of two images. For probes it is masked against masked. Limiting it to one draw
    (OURS) keeps the number of pairs near (images x kinds)^2 / 2 a draw.
    """
    draw = members.draw()
    parts = (
        [_within(members.take(draw == number)) for number in range(int(draw.max()) + 1)]
        if len(members)
        else [_within(members)]
    )
    return PairScores(
        *(torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True))
    )  # the fold is None


class VerificationMetric(Metric):
    """`verification_scores` of all pairs seen by all processes.

    >>> metric = VerificationMetric()
    >>> metric.update(torch.tensor([0.9, 0.8, 0.3, 0.1]), torch.tensor([True, False, True, False]))
    >>> metric.compute()["auc"]
    0.75
    """

    full_state_update = False
    similarity: list[Tensor]
    same: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("similarity", default=[], dist_reduce_fx="cat")
        self.add_state("same", default=[], dist_reduce_fx="cat")

    def update(self, similarity: Tensor, same: Tensor) -> None:
        """Add pairs: similarity (N,) and whether both faces show one person, (N,) bool."""
        check_pairs(similarity, same)
        self.similarity.append(similarity.detach())
        self.same.append(same)

    def compute(self) -> dict[str, float]:
        """The scores of every pair seen."""
        return verification_scores(dim_zero_cat(self.similarity), dim_zero_cat(self.same))


def _area(curve: RocCurve) -> float:
    """The area under the curve; that of no pairs, a single point, is NaN and not 0."""
    return float(torch.trapezoid(curve.tar, curve.far)) if len(curve.far) > 1 else float("nan")


def _first_reaching(excess: Tensor) -> Tensor:
    """(..., 1) the first place along the last axis where `excess` is no longer negative."""
    return (excess >= 0).int().argmax(-1, keepdim=True)


def _negatives(same: Tensor, weight: Tensor | None) -> int:
    return int((~same if weight is None else ~same & (weight > 0)).sum())


def _within(members: EmbeddingSet) -> PairScores:
    return _compare(members, members, (members.index[:, None] != members.index[None]).triu(1))


def _compare(first: EmbeddingSet, second: EmbeddingSet, allowed: Tensor) -> PairScores:
    """The pairs that are `allowed`, (len(first), len(second)) bool, row by row."""
    row, column = allowed.nonzero(as_tuple=True)
    one, other = first.identity[row], second.identity[column]
    similarity = (first.embedding.float() @ second.embedding.float().T)[row, column]
    return PairScores(similarity, one == other, one, other)


class FoldAccuracy(NamedTuple):
    """The share of right decisions; NaN throughout where there are fewer than two folds, so that no other fold could give a threshold."""

    mean: float
    """Over folds, each counting the same."""
    standard_error: float
    """The standard deviation over folds, with folds - 1 under the root, over the square root of folds."""
    accuracies: Tensor
    """(folds,) float64, by ascending fold number."""
    thresholds: Tensor
    """(folds,) float64: a pair of this fold is accepted where its similarity is at least that."""


def fold_accuracy(pairs: PairScores) -> FoldAccuracy:
    """The accuracy on each fold under the threshold that is best on the other folds; exact, over all thresholds that differ.

    >>> similarity, same, person = torch.tensor([0.9, 0.1, 0.6, 0.2]), torch.tensor([True, False] * 2), torch.arange(4)
    >>> pairs = PairScores(similarity, same, person, person, fold=torch.tensor([0, 0, 1, 1]))
    >>> scores = fold_accuracy(pairs)
    >>> scores.mean, [round(threshold, 3) for threshold in scores.thresholds.tolist()]
    (1.0, [0.4, 0.5])

    Raises:
        ValueError: the shapes are not all (N,), or a similarity is not finite.
    """
    fold, folds = _folds(pairs)
    if len(folds) < 2:
        unknown = torch.full((len(folds),), torch.nan, dtype=torch.float64)
        return FoldAccuracy(math.nan, math.nan, unknown, unknown)
    thresholds = _thresholds(pairs, fold, len(folds))
    right = ((pairs.similarity >= thresholds[fold]) == pairs.same).double()
    accuracies = torch.zeros_like(thresholds).index_add_(0, fold, right) / torch.bincount(fold)
    return FoldAccuracy(
        float(accuracies.mean()), float(accuracies.std()) / math.sqrt(len(folds)), accuracies, thresholds
    )


def decisions(pairs: PairScores) -> Tensor:
    """(N,) bool: whether each pair is decided rightly under its fold's threshold, as `mcnemar` compares it between two systems.

    Raises:
        ValueError: as in `fold_accuracy`, or there are fewer than two folds.
    """
    fold, folds = _folds(pairs)
    if len(folds) < 2:
        raise ValueError(
            f"the pairs lie in {len(folds)} fold: two or more are needed, so that others can give a fold's threshold"
        )
    return (pairs.similarity >= _thresholds(pairs, fold, len(folds))[fold]) == pairs.same


def _folds(pairs: PairScores) -> tuple[Tensor, Tensor]:
    """(N,) the position of each pair's fold in (folds,), the fold numbers; one fold where the pairs have none."""
    check_pairs(pairs.similarity, pairs.same)
    fold = torch.zeros_like(pairs.same, dtype=torch.int64) if pairs.fold is None else pairs.fold
    if fold.shape != pairs.same.shape:
        raise ValueError(f"expected a fold for each of {len(pairs.same)} pairs, got shape {tuple(fold.shape)}")
    folds, position = torch.unique(fold, return_inverse=True)
    return position, folds


def _thresholds(pairs: PairScores, fold: Tensor, folds: int) -> Tensor:
    """(folds,) float64: for each fold the threshold that is best on the others."""
    score, order = pairs.similarity.double().sort(descending=True)
    same, fold = pairs.same[order], fold[order]
    return torch.stack([_best_threshold(score[fold != held_out], same[fold != held_out]) for held_out in range(folds)])


def _best_threshold(score: Tensor, same: Tensor) -> Tensor:
    """The highest of the best thresholds for pairs in falling order of similarity."""
    gain = torch.cat(
        [torch.zeros(1, dtype=torch.int64), (2 * same.long() - 1).cumsum(0)]
    )  # right decisions once n pairs are accepted
    infinity = torch.full((1,), torch.inf, dtype=torch.float64)
    above, below = torch.cat([infinity, score]), torch.cat([score, -infinity])
    gain[above == below] = gain.min() - 1  # equal similarities cannot be told apart
    accepted = gain.argmax()
    return (
        above[accepted].lerp(below[accepted], 0.5)
        if 0 < accepted < len(score)
        else (below if accepted else above)[accepted]
    )
