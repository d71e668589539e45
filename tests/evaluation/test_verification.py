"""Rates, curves and accuracy over folds against scikit-learn and exhaustive search."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import (
    PairScores,
    decisions,
    equal_error_rate,
    fold_accuracy,
    operating_point,
    roc_curve,
    verification_scores,
)


def true_accept_rate(similarity: torch.Tensor, same: torch.Tensor, far: float) -> float:
    return operating_point(roc_curve(similarity, same), int((~same).sum()), far)[0]


def _pairs(number: int = 400, decimals: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping similarities with many ties, and integer weights, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    same = torch.rand(number, generator=generator) < 0.3
    similarity = (torch.randn(number, generator=generator) + same).mul(10**decimals).round().div(10**decimals)
    return similarity, same, torch.randint(0, 4, (number,), generator=generator)


def _slow_rates(similarity: torch.Tensor, same: torch.Tensor, threshold: float) -> tuple[float, float]:
    accepted = [s >= threshold for s in similarity.tolist()]
    different = [a for a, g in zip(accepted, same.tolist(), strict=True) if not g]
    genuine = [a for a, g in zip(accepted, same.tolist(), strict=True) if g]
    return sum(different) / len(different), sum(genuine) / len(genuine)


@pytest.mark.parametrize("weighted", [False, True])
def test_roc_and_auc_equal_sklearn(weighted: bool) -> None:
    similarity, same, weight = _pairs()
    chosen = weight if weighted else None
    curve = roc_curve(similarity, same, chosen)
    far, tar, threshold = sklearn_metrics.roc_curve(
        same, similarity.double(), sample_weight=chosen, drop_intermediate=False
    )
    kept = np.isin(curve.threshold.numpy(), threshold)  # sklearn drops thresholds that only pairs of weight 0 have
    np.testing.assert_allclose(curve.far.numpy()[kept], far, atol=1e-12)
    np.testing.assert_allclose(curve.tar.numpy()[kept], tar, atol=1e-12)
    expected = sklearn_metrics.roc_auc_score(same, similarity.double())
    assert verification_scores(similarity, same)["auc"] == pytest.approx(expected, abs=1e-12)


def test_eer_of_hand_computed_case() -> None:
    # Thresholds .9 .8 .6 .5: (FAR, 1 - TAR) = (0, 2/3) (0, 1/3) (1/2, 1/3) (1/2, 0): equal between the second
    # and the third, at FAR = 1/3
    similarity, same = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.1]), torch.tensor([True, True, False, True, False])
    assert equal_error_rate(similarity, same) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("similarity", "expected"), [([0.9, 0.8, 0.2, 0.1], 0.0), ([0.1, 0.2, 0.8, 0.9], 1.0), ([0.5] * 4, 0.5)]
)
def test_eer_of_separated_and_tied_pairs(similarity: list[float], expected: float) -> None:
    assert equal_error_rate(torch.tensor(similarity), torch.tensor([True, True, False, False])) == pytest.approx(
        expected
    )


def test_eer_interpolates_slow_rates() -> None:
    similarity, same, _ = _pairs(seed=3)
    points = [(0.0, 0.0)] + [_slow_rates(similarity, same, t) for t in sorted(set(similarity.tolist()), reverse=True)]
    after = next(i for i, (far, tar) in enumerate(points) if far >= 1 - tar)
    share = np.linspace(0, 1, 200001)
    (far0, tar0), (far1, tar1) = points[after - 1], points[after]
    far, reject = far0 + share * (far1 - far0), 1 - tar0 - share * (tar1 - tar0)
    assert equal_error_rate(similarity, same) == pytest.approx(far[np.abs(far - reject).argmin()], abs=1e-5)


@pytest.mark.parametrize("far", [0.02, 0.1, 0.5, 1.0])
def test_tar_equals_threshold_search(far: float) -> None:
    similarity, same, _ = _pairs(seed=1)
    rates = [_slow_rates(similarity, same, threshold) for threshold in similarity.tolist()]
    assert true_accept_rate(similarity, same, far) == pytest.approx(
        max((tar for f, tar in rates if f <= far), default=0.0)
    )


def test_tar_is_nan_below_one_pair() -> None:
    similarity = torch.cat([torch.linspace(0, 1, 100), torch.tensor([2.0])])
    same = torch.tensor([False] * 100 + [True])
    assert true_accept_rate(similarity, same, 1e-2) == 1.0
    assert math.isnan(true_accept_rate(similarity[1:], same[1:], 1e-2))


def test_tar_at_far_just_met() -> None:
    similarity, same = torch.tensor([3.0, 2.0, *([1.0] * 99)]), torch.tensor([False, True] + [False] * 99)
    assert true_accept_rate(similarity, same, 1e-2) == 1.0


def test_thresholds_reproduce_rates() -> None:
    similarity, same, _ = _pairs(2000, decimals=4)
    scores = verification_scores(similarity, same)
    far, tar = _slow_rates(similarity, same, scores["threshold@1e-2"])
    assert far <= 1e-2
    assert tar == pytest.approx(scores["tar@1e-2"])
    far, tar = _slow_rates(similarity, same, scores["threshold@eer"])
    assert far == pytest.approx(scores["eer"], abs=3e-3)


@pytest.mark.parametrize("same", [[True, True], [False, False], []])
def test_scores_of_one_class_are_nan(same: list[bool]) -> None:
    scores = verification_scores(torch.linspace(0, 1, len(same)), torch.tensor(same, dtype=torch.bool))
    assert all(math.isnan(scores[name]) for name in ("eer", "auc", "threshold@eer"))


@pytest.mark.parametrize(
    ("similarity", "same", "message"),
    [
        (torch.zeros(3), torch.zeros(2, dtype=torch.bool), "one shape"),
        (torch.zeros(2), torch.zeros(2), "bool"),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), "one shape"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2, dtype=torch.bool), "not finite"),
    ],
)
def test_eer_rejects_bad_pairs(similarity: torch.Tensor, same: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_error_rate(similarity, same)


def test_all_pairs_equal_loop(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    scores = AllPairs().cross(gallery, probe)
    expected = [
        (float(gallery.embedding[i] @ probe.embedding[j]), int(gallery.identity[i]), int(probe.identity[j]))
        for i in range(len(gallery))
        for j in range(len(probe))
        if gallery.index[i] != probe.index[j]
    ]
    torch.testing.assert_close(scores.similarity, torch.tensor([e[0] for e in expected]))
    assert scores.first_identity.tolist() == [e[1] for e in expected]
    assert scores.second_identity.tolist() == [e[2] for e in expected]
    assert scores.same.tolist() == [e[1] == e[2] for e in expected]


def test_pairs_within_equal_loop(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    draw = [
        sorted(
            int(s) for i, k, s in zip(probe.index, probe.kind, probe.seed, strict=True) if (i, k) == (index, kind)
        ).index(int(seed))
        for index, kind, seed in zip(probe.index, probe.kind, probe.seed, strict=True)
    ]
    expected = [
        float(probe.embedding[i] @ probe.embedding[j])
        for i in range(len(probe))
        for j in range(i)
        if draw[i] == draw[j] and probe.index[i] != probe.index[j]
    ]
    found = AllPairs().within(probe)
    torch.testing.assert_close(found.similarity.sort().values, torch.tensor(expected).sort().values)
    assert len(AllPairs().within(gallery).same) == len(gallery) * (len(gallery) - 1) // 2
    empty: EmbeddingSet = gallery.take(gallery.kind == 9)
    assert len(AllPairs().within(empty).same) == 0 and found.fold is None


def test_scores_contain_each_tar() -> None:
    similarity, same, _ = _pairs(2000, decimals=4)
    scores = verification_scores(similarity, same)
    rates = [true_accept_rate(similarity, same, far) for far in (1e-1, 1e-2, 1e-3)]
    assert [scores[f"tar@{name}"] for name in ("1e-1", "1e-2", "1e-3")] == rates
    assert rates == sorted(rates, reverse=True)
    assert math.isnan(scores["tar@1e-4"])  # 1,400 pairs of different people


def _folded_pairs(number: int = 200, folds: int = 4, decimals: int = 1, seed: int = 0) -> PairScores:
    """Overlapping similarities with many ties; folds in no order, whose numbers have gaps."""
    generator = torch.Generator().manual_seed(seed)
    same = torch.rand(number, generator=generator) < 0.4
    similarity = (torch.randn(number, generator=generator) + 1.5 * same).mul(10**decimals).round().div(10**decimals)
    fold = torch.arange(number)[torch.randperm(number, generator=generator)] % folds
    person = torch.arange(number)
    return PairScores(similarity, same, person, person, 3 * fold + 1)


def _slow_threshold(similarity: list[float], same: list[bool]) -> float:
    """Every midpoint, from the highest down, tried on every pair."""
    values = sorted(set(similarity), reverse=True)
    candidates = [math.inf, *[(high + low) / 2 for high, low in itertools.pairwise(values)], -math.inf]
    right = [sum((value >= t) == truth for value, truth in zip(similarity, same, strict=True)) for t in candidates]
    return candidates[right.index(max(right))]


@pytest.mark.parametrize("decimals", [0, 1, 5])
def test_fold_accuracy_equals_search(decimals: int) -> None:
    pairs = _folded_pairs(decimals=decimals)
    scores = fold_accuracy(pairs)
    assert pairs.fold is not None
    rows = list(zip(pairs.similarity.tolist(), pairs.same.tolist(), pairs.fold.tolist(), strict=True))
    for place, fold in enumerate(sorted({row[2] for row in rows})):
        others = [row for row in rows if row[2] != fold]
        threshold = _slow_threshold([row[0] for row in others], [row[1] for row in others])
        right = [(value >= threshold) == truth for value, truth, number in rows if number == fold]
        assert float(scores.thresholds[place]) == pytest.approx(threshold, abs=1e-12)
        assert float(scores.accuracies[place]) == pytest.approx(sum(right) / len(right), abs=1e-12)
    accuracies = scores.accuracies.numpy()
    assert 0.6 < scores.mean < 0.95 and scores.mean == pytest.approx(accuracies.mean(), abs=1e-12)
    assert scores.standard_error == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(len(accuracies)), abs=1e-12)


def test_fold_threshold_ignores_own_fold() -> None:
    pairs = _folded_pairs(decimals=5)
    assert pairs.fold is not None
    changed = pairs._replace(similarity=torch.where(pairs.fold == 1, -pairs.similarity, pairs.similarity))
    assert float(fold_accuracy(pairs).thresholds[0]) == float(fold_accuracy(changed).thresholds[0])
    assert float(fold_accuracy(pairs).accuracies[0]) > float(fold_accuracy(changed).accuracies[0])


@pytest.mark.parametrize(("same", "threshold"), [(True, -math.inf), (False, math.inf)])
def test_fold_threshold_of_one_class(same: bool, threshold: float) -> None:
    pairs = _folded_pairs()._replace(same=torch.full((200,), same))
    assert fold_accuracy(pairs).thresholds.tolist() == [threshold] * 4
    assert fold_accuracy(pairs).mean == 1.0


def test_fold_threshold_of_tie_is_highest() -> None:
    """In fold 1 two pairs are equal and of either sort: to accept both is right as often as to accept none."""
    similarity, same, person = torch.tensor([0.5, 0.9, 0.9]), torch.tensor([True, True, False]), torch.arange(3)
    pairs = PairScores(similarity, same, person, person, torch.tensor([0, 1, 1]))
    assert float(fold_accuracy(pairs).thresholds[0]) == math.inf


@pytest.mark.parametrize("fold", [None, torch.zeros(200, dtype=torch.int64)])
def test_fold_accuracy_needs_two_folds(fold: torch.Tensor | None) -> None:
    pairs = _folded_pairs()._replace(fold=fold)
    scores = fold_accuracy(pairs)
    assert all(math.isnan(value) for value in (scores.mean, scores.standard_error, *scores.accuracies.tolist()))
    with pytest.raises(ValueError, match="1 fold: two or more"):
        decisions(pairs)
