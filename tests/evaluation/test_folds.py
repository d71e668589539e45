import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from deocc.evaluation import PairScores
from deocc.evaluation.verification import decisions, fold_accuracy


def _pairs(number: int = 200, folds: int = 4, decimals: int = 1, seed: int = 0) -> PairScores:
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
def test_thresholds_and_accuracies_equal_a_search_over_all_midpoints(decimals: int) -> None:
    pairs = _pairs(decimals=decimals)
    scores = fold_accuracy(pairs)
    rows = list(zip(pairs.similarity.tolist(), pairs.same.tolist(), pairs.fold.tolist(), strict=True))
    for place, fold in enumerate(sorted({row[2] for row in rows})):
        others = [row for row in rows if row[2] != fold]
        threshold = _slow_threshold([row[0] for row in others], [row[1] for row in others])
        right = [(value >= threshold) == truth for value, truth, number in rows if number == fold]
        assert float(scores.thresholds[place]) == pytest.approx(threshold, abs=1e-12)
        assert float(scores.accuracies[place]) == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert 0.6 < scores.mean < 0.95


def test_mean_and_standard_error_equal_sklearns_ten_folds() -> None:
    number = 600
    pairs = _pairs(number, decimals=6)
    similarity, same = pairs.similarity.double().numpy(), pairs.same.numpy()
    fold, accuracies = np.zeros(number, dtype=np.int64), []
    for held_out, (train, test) in enumerate(KFold(10).split(similarity)):
        fold[test] = held_out
        threshold = _slow_threshold(similarity[train].tolist(), same[train].tolist())
        accuracies.append(np.mean((similarity[test] >= threshold) == same[test]))
    scores = fold_accuracy(pairs._replace(fold=torch.from_numpy(fold)))
    assert scores.mean == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert scores.standard_error == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(10), abs=1e-12)


def test_a_folds_own_pairs_do_not_move_its_threshold() -> None:
    pairs = _pairs(decimals=5)
    changed = pairs._replace(similarity=torch.where(pairs.fold == 1, -pairs.similarity, pairs.similarity))
    assert float(fold_accuracy(pairs).thresholds[0]) == float(fold_accuracy(changed).thresholds[0])
    assert float(fold_accuracy(pairs).accuracies[0]) > float(fold_accuracy(changed).accuracies[0])


@pytest.mark.parametrize(("same", "threshold"), [(True, -math.inf), (False, math.inf)])
def test_other_folds_of_one_sort_accept_every_pair_or_none(same: bool, threshold: float) -> None:
    pairs = _pairs()._replace(same=torch.full((200,), same))
    assert fold_accuracy(pairs).thresholds.tolist() == [threshold] * 4
    assert fold_accuracy(pairs).mean == 1.0


def test_a_tie_that_cannot_be_told_apart_leaves_the_highest_threshold() -> None:
    """In fold 1 two pairs are equal and of either sort: to accept both is right as often as to accept none."""
    similarity, same, person = torch.tensor([0.5, 0.9, 0.9]), torch.tensor([True, True, False]), torch.arange(3)
    pairs = PairScores(similarity, same, person, person, torch.tensor([0, 1, 1]))
    assert float(fold_accuracy(pairs).thresholds[0]) == math.inf


def test_decisions_are_those_behind_the_accuracies() -> None:
    pairs = _pairs()
    right, scores = decisions(pairs), fold_accuracy(pairs)
    assert [float(right[pairs.fold == fold].double().mean()) for fold in pairs.fold.unique()] == pytest.approx(
        scores.accuracies.tolist()
    )


@pytest.mark.parametrize("fold", [None, torch.zeros(200, dtype=torch.int64)])
def test_without_a_second_fold_there_is_no_accuracy_and_no_decision(fold: torch.Tensor | None) -> None:
    pairs = _pairs()._replace(fold=fold)
    scores = fold_accuracy(pairs)
    assert all(math.isnan(value) for value in (scores.mean, scores.standard_error, *scores.accuracies.tolist()))
    with pytest.raises(ValueError, match="1 fold: two or more"):
        decisions(pairs)


def test_folds_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="a fold for each of 200 pairs"):
        fold_accuracy(_pairs()._replace(fold=torch.zeros(3, dtype=torch.int64)))
