"""Accuracy over folds, intervals and the bootstrap, on any scores and any people."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import strategies as st

from deocc.evaluation.bootstrap import tar_intervals, wilson
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import PairScores, decisions, fold_accuracy, operating_point, roc_curve
from tests.evaluation.conftest import paired_bootstrap
from tests.properties.strategies import SEEDS, Scores, for_all, image_sets, noise, relabelled, scored_pairs

Sets = tuple[EmbeddingSet, EmbeddingSet]


def _folded(scores: Scores, folds: list[int]) -> PairScores:
    people = torch.arange(len(scores[1]))
    return PairScores(*scores, people, people, torch.tensor(folds[: len(people)]))


@for_all(scores=scored_pairs(), folds=st.lists(st.integers(-1, 3), min_size=32, max_size=32), seed=SEEDS)
def test_fold_accuracy_ignores_scale(scores: Scores, folds: list[int], seed: int) -> None:
    pairs = _folded(scores, folds)
    numbers = pairs.fold.unique()  # type: ignore[union-attr]
    result = fold_accuracy(pairs)
    if len(numbers) < 2:
        assert math.isnan(result.mean)
        return
    right = decisions(pairs)
    shares = torch.stack([right[pairs.fold == number].double().mean() for number in numbers])
    torch.testing.assert_close(result.accuracies, shares)
    assert result.mean == pytest.approx(float(shares.mean())) and 0 <= result.mean <= 1
    scaled = fold_accuracy(pairs._replace(similarity=pairs.similarity * 4))
    assert torch.equal(scaled.accuracies, result.accuracies) and torch.equal(scaled.thresholds, result.thresholds * 4)
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(seed % 2**63))
    shuffled = PairScores(*(column[order] for column in pairs if column is not None))
    assert torch.equal(decisions(shuffled), right[order])


@for_all(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_holds_its_share_and_narrows(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    z = NormalDist().inv_cdf(0.975)
    for chance in (low, high):  # each end is a chance that lies z of its own standard deviations from the share
        assert (successes / trials - chance) ** 2 == pytest.approx(z * z * chance * (1 - chance) / trials, abs=1e-9)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    finer = wilson(4 * successes, 4 * trials)
    assert finer.high - finer.low < high - low


@for_all(scores=scored_pairs(), copies=st.integers(1, 40))
def test_tar_interval_or_its_reason(scores: Scores, copies: int) -> None:
    similarity, same = (column.repeat(copies) for column in scores)
    for name, answer in tar_intervals(similarity, same).items():
        tar, _ = operating_point(roc_curve(similarity, same), int((~same).sum()), float(name))
        if "reason" in answer:
            assert math.isnan(tar) and "not enough negatives" in str(answer["reason"])
        else:
            assert answer["tar"] == tar and float(answer["low"]) - 1e-12 <= tar <= float(answer["high"]) + 1e-12


@for_all(sets=image_sets(least=2), other_seed=SEEDS, seed=st.integers(0, 2**31))
def test_bootstrap_changes_sign_with_sides(sets: Sets, other_seed: int, seed: int) -> None:
    first = AllPairs().cross(*sets)
    second = first._replace(similarity=first.similarity + noise(other_seed, len(first.same)))
    given, mirrored = (
        paired_bootstrap("eer", [first], [second], 12, seed),
        paired_bootstrap("eer", [second], [first], 12, seed),
    )
    assert paired_bootstrap("eer", [first], [second], 12, seed) == pytest.approx(given, nan_ok=True, abs=0)
    expected = (-given.estimate, -given.mean, -given.high, -given.low)
    assert mirrored == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert math.isnan(given.low) or -1 <= given.low <= given.mean + 1e-9 <= given.high + 2e-9 <= 1 + 2e-9
    alike = paired_bootstrap("eer", [first], [first._replace(similarity=relabelled(first.similarity, seed))], 12, seed)
    assert alike.estimate == 0 or not bool(first.same.any())
    assert all(math.isnan(value) or value == pytest.approx(0, abs=1e-9) for value in alike)


def _two_systems(people: int, seed: int) -> tuple[PairScores, PairScores]:
    """Two noisy systems' scores of three images a person."""
    identity = torch.arange(people).repeat_interleave(3)
    one, other = torch.triu_indices(len(identity), len(identity), 1)
    same = identity[one] == identity[other]
    spread = noise(seed, people)
    skill = 1.5 + spread[identity[one]] * 0.3
    pairs = [
        PairScores(skill * same + noise(seed + n, len(same)), same, identity[one], identity[other]) for n in (1, 2)
    ]
    return pairs[0], pairs[1]._replace(similarity=pairs[1].similarity - 0.4 * same)


def test_bootstrap_narrows_with_people() -> None:
    """Fixed draws:

    in nearly all of 12 comparisons the estimate lies inside, and four times the people halve the mean width, about.
    """
    widths = []
    for people in (8, 32):
        systems = [_two_systems(people, 100 * seed) for seed in range(12)]
        intervals = [paired_bootstrap("eer", [one], [other], 100, seed) for seed, (one, other) in enumerate(systems)]
        assert sum(interval.low <= interval.estimate <= interval.high for interval in intervals) >= 11
        widths.append(sum(interval.high - interval.low for interval in intervals) / 12)
    assert 0.3 < widths[1] / widths[0] < 0.7
