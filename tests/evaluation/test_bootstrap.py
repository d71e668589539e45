import math

import numpy as np
import pytest
import torch

from deocc.evaluation import EmbeddingSet, PairScores, bootstrap, equal_error_rate, pair_scores, paired_bootstrap_eer
from deocc.evaluation.bootstrap import (
    paired_bootstrap_accuracy,
    paired_bootstrap_mean_accuracy,
    paired_bootstrap_mean_eer,
)
from deocc.evaluation.verification import decisions, fold_accuracy


def _slow_replicates(
    first: PairScores, second: PairScores, replicates: int, seed: int | torch.Generator
) -> list[float]:
    """The weighted equal error rates, pair by pair, for the people that the fast form draws."""
    people = torch.cat([first.first_person, first.second_person]).unique().tolist()
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    drawn = torch.randint(len(people), (replicates, len(people)), generator=generator).tolist()
    differences = []
    for draw in drawn:
        count = {person: draw.count(position) for position, person in enumerate(people)}
        weight = [
            count[i] if i == j else count[i] * count[j]
            for i, j in zip(first.first_person.tolist(), first.second_person.tolist(), strict=True)
        ]
        rates = [equal_error_rate(pairs.similarity, pairs.same, torch.tensor(weight)) for pairs in (first, second)]
        differences.append(rates[0] - rates[1])
    return differences


@pytest.mark.parametrize("bins", [None, 400])
def test_interval_equals_the_exact_one(make_sets, monkeypatch: pytest.MonkeyPatch, bins: int | None) -> None:
    first, second = pair_scores(*make_sets(4.0, seed=1)), pair_scores(*make_sets(5.0, seed=2))
    if bins is not None:
        monkeypatch.setattr(bootstrap, "_BINS", bins)  # so few that bins hold several pairs
    interval = paired_bootstrap_eer(first, second, replicates=60, seed=4)
    slow = _slow_replicates(first, second, 60, seed=4)
    tolerance = 1e-9 if bins is None else 2e-3
    assert np.std(slow) > 0.01
    assert interval.mean == pytest.approx(np.mean(slow), abs=tolerance)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=tolerance)
    assert interval.estimate == equal_error_rate(first.similarity, first.same) - equal_error_rate(
        second.similarity, second.same
    )


def test_bins_of_a_large_test_shift_the_interval_by_less_than_1e_4() -> None:
    generator = torch.Generator().manual_seed(0)
    people, number = 16, 120_000
    one, other = (torch.randint(people, (number,), generator=generator) for _ in range(2))
    other = torch.where(torch.rand(number, generator=generator) < 0.1, one, other)
    spread = torch.randn(people, generator=generator) * 0.3

    def scores(gain: float) -> PairScores:
        similarity = torch.randn(number, generator=generator) + (one == other) * (gain + spread[one])
        return PairScores(similarity, one == other, one, other)

    first, second = scores(2.0), scores(1.5)
    interval = paired_bootstrap_eer(first, second, replicates=8, seed=1)
    slow = _slow_replicates(first, second, 8, seed=1)
    assert [interval.mean, interval.low, interval.high] == pytest.approx(
        [np.mean(slow), *np.quantile(slow, [0.025, 0.975])], abs=1e-4
    )


def _two_folds(make_sets, noise: float, seed: int) -> list[PairScores]:
    """Of different people: 0 to 2 and 3 to 5."""
    parts = [
        [members.take((members.identity < 3) == lower) for members in make_sets(noise, seed=seed)]
        for lower in (True, False)
    ]
    return [pair_scores(*sets) for sets in parts]


def test_interval_of_a_mean_over_folds_equals_the_slow_one(make_sets) -> None:
    firsts, seconds = _two_folds(make_sets, 4.0, seed=1), _two_folds(make_sets, 5.0, seed=2)
    interval = paired_bootstrap_mean_eer(firsts, seconds, replicates=60, seed=4)
    generator = torch.Generator().manual_seed(4)
    folds = [_slow_replicates(first, second, 60, generator) for first, second in zip(firsts, seconds, strict=True)]
    slow = np.mean(folds, axis=0)
    slow = slow[~np.isnan(slow)]
    assert 30 < len(slow) < 60  # of three people, one in nine draws shows one only
    assert interval.mean == pytest.approx(np.mean(slow), abs=1e-9)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=1e-9)
    rates = [[equal_error_rate(pairs.similarity, pairs.same) for pairs in system] for system in (firsts, seconds)]
    assert interval.estimate == pytest.approx(np.mean(rates[0]) - np.mean(rates[1]), abs=1e-12)


def test_folds_that_do_not_match_are_refused(make_sets) -> None:
    folds = _two_folds(make_sets, 4.0, seed=1)
    for firsts, seconds in (([], []), (folds, folds[:1])):
        with pytest.raises(ValueError, match="same folds of both"):
            paired_bootstrap_mean_eer(firsts, seconds)
    with pytest.raises(ValueError, match="different pairs"):
        paired_bootstrap_mean_eer(folds, folds[::-1])


def test_the_number_of_replicates_taken_at_a_time_changes_nothing(make_sets, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair_scores(*make_sets(4.0)), pair_scores(*make_sets(5.0))
    expected = paired_bootstrap_eer(first, second, 7)
    monkeypatch.setattr(bootstrap, "_CELLS", 1)
    assert paired_bootstrap_eer(first, second, 7) == pytest.approx(expected)


def test_a_thousand_replicates_are_drawn_from_seed_zero_unless_asked_otherwise(make_sets) -> None:
    first, second = pair_scores(*make_sets(4.0)), pair_scores(*make_sets(5.0))
    expected = paired_bootstrap_mean_eer([first], [second], replicates=1000, seed=0)
    assert paired_bootstrap_eer(first, second) == paired_bootstrap_mean_eer([first], [second]) == expected


def test_a_system_does_not_differ_from_itself(make_sets) -> None:
    pairs = pair_scores(*make_sets(4.0))
    assert tuple(paired_bootstrap_eer(pairs, pairs, replicates=20)) == (0.0, 0.0, 0.0, 0.0)


def test_the_seed_decides_the_interval(make_sets) -> None:
    first, second = pair_scores(*make_sets(4.0)), pair_scores(*make_sets(5.0))
    assert paired_bootstrap_eer(first, second, 30, seed=1) == paired_bootstrap_eer(first, second, 30, seed=1)
    assert paired_bootstrap_eer(first, second, 30, seed=1) != paired_bootstrap_eer(first, second, 30, seed=2)


def test_replicates_of_a_single_person_are_left_out(make_sets) -> None:
    gallery, probe = make_sets(4.0)
    two: list[EmbeddingSet] = [members.take(members.identity < 2) for members in (gallery, probe)]
    interval = paired_bootstrap_eer(pair_scores(*two), pair_scores(*two), replicates=40)
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_no_replicate_of_several_people_leaves_the_estimate_alone(make_sets, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, probe = make_sets(4.0)
    pairs = pair_scores(*(members.take(members.identity < 2) for members in (gallery, probe)))
    worse = pairs._replace(similarity=-pairs.similarity)
    monkeypatch.setattr(
        torch, "randint", lambda high, size, generator: torch.zeros(size, dtype=torch.int64)
    )  # always the first person
    interval = paired_bootstrap_eer(worse, pairs, replicates=3)
    assert interval.estimate == equal_error_rate(worse.similarity, worse.same) - equal_error_rate(
        pairs.similarity, pairs.same
    )
    assert all(math.isnan(value) for value in interval[1:])


def test_different_pairs_too_few_people_and_no_replicates_are_refused(make_sets) -> None:
    gallery, probe = make_sets(4.0)
    pairs = pair_scores(gallery, probe)
    with pytest.raises(ValueError, match="different pairs"):
        paired_bootstrap_eer(pairs, pair_scores(gallery, probe.take(torch.arange(len(probe) - 1))))
    with pytest.raises(ValueError, match="replicates is 0"):
        paired_bootstrap_eer(pairs, pairs, replicates=0)
    alone = pair_scores(*(members.take(members.identity == 0) for members in (gallery, probe)))
    with pytest.raises(ValueError, match="1 people"):
        paired_bootstrap_eer(alone, alone)


def _folded(make_sets, noise: float, seed: int) -> PairScores:
    """All pairs, in three folds that mix people and sorts of pair."""
    pairs = pair_scores(*make_sets(noise, seed=seed))
    return pairs._replace(fold=torch.arange(len(pairs.same)) % 3)


def _slow_accuracy_differences(first: PairScores, second: PairScores, replicates: int, seed: int) -> list[float]:
    """The weighted accuracies, pair by pair: the mean of the accuracy over same pairs and that over different pairs."""
    people = sorted({*first.first_person.tolist(), *first.second_person.tolist()})
    drawn = torch.randint(
        len(people), (replicates, len(people)), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    right = [decisions(pairs).tolist() for pairs in (first, second)]
    pairs = list(zip(first.same.tolist(), first.first_person.tolist(), first.second_person.tolist(), strict=True))
    differences = []
    for draw in drawn:
        count = {person: draw.count(position) for position, person in enumerate(people)}
        accuracy = [0.0, 0.0]
        for sort in (True, False):
            weights = [(count[i] if sort else count[i] * count[j]) if same == sort else 0 for same, i, j in pairs]
            for system in (0, 1):
                hits = sum(weight for weight, hit in zip(weights, right[system], strict=True) if hit)
                accuracy[system] += hits / sum(weights) / 2
        differences.append(accuracy[0] - accuracy[1])
    return differences


def test_bootstrap_accuracy_equals_the_slow_loop(make_sets) -> None:
    first, second = _folded(make_sets, 2.0, seed=1), _folded(make_sets, 3.0, seed=2)
    interval = paired_bootstrap_accuracy(first, second, replicates=25, seed=4)
    slow = _slow_accuracy_differences(first, second, 25, seed=4)
    assert np.std(slow) > 0.005
    assert interval.mean == pytest.approx(np.mean(slow), abs=1e-9)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=1e-9)
    assert interval.low < interval.estimate < interval.high


def test_bootstrap_accuracy_estimate_is_that_of_folds(make_sets) -> None:
    """Of folds with as many same pairs as different ones, the usual case."""
    parts = []
    for noise, seed in ((2.0, 1), (3.0, 2)):
        pairs = pair_scores(*make_sets(noise, seed=seed))
        same, different = (chosen.nonzero().flatten()[:300] for chosen in (pairs.same, ~pairs.same))
        chosen = torch.stack(
            [same, different[torch.randperm(300, generator=torch.Generator().manual_seed(0))]], 1
        ).flatten()
        taken = [value[chosen] for value in (pairs.similarity, pairs.same, pairs.first_person, pairs.second_person)]
        parts.append(PairScores(*taken, torch.arange(600) // 200))
    interval = paired_bootstrap_accuracy(*parts, replicates=5)
    assert interval.estimate == pytest.approx(fold_accuracy(parts[0]).mean - fold_accuracy(parts[1]).mean, abs=1e-9)


def test_bootstrap_accuracy_refuses_other_pairs(make_sets) -> None:
    first, second = _folded(make_sets, 2.0, seed=1), _folded(make_sets, 3.0, seed=2)
    with pytest.raises(ValueError, match="different pairs"):
        paired_bootstrap_accuracy(first, PairScores(*(value[1:] for value in second)))
    with pytest.raises(ValueError, match="two or more are needed"):
        paired_bootstrap_accuracy(first._replace(fold=torch.zeros_like(first.fold)), second)


def _in_folds(pairs: PairScores, seed: int) -> PairScores:
    return pairs._replace(fold=torch.randint(3, pairs.same.shape, generator=torch.Generator().manual_seed(seed)))


def test_mean_accuracy_of_parts_keeps_thresholds_within_a_part(make_sets) -> None:
    """The second part's similarities are shifted, so that a threshold common to both would be useless."""
    firsts = [_in_folds(pair_scores(*make_sets(4.0, seed=seed)), seed) for seed in (1, 2)]
    seconds = [_in_folds(pair_scores(*make_sets(7.0, seed=seed + 2)), seed) for seed in (1, 2)]
    shifted = [[part[0], part[1]._replace(similarity=part[1].similarity + 5)] for part in (firsts, seconds)]
    assert paired_bootstrap_mean_accuracy(*shifted, 80, seed=3) == paired_bootstrap_mean_accuracy(
        firsts, seconds, 80, seed=3
    )
    both = paired_bootstrap_mean_accuracy(firsts, seconds, 80, seed=3)
    alone = [paired_bootstrap_accuracy(*pairs, 80, seed=3) for pairs in zip(firsts, seconds, strict=True)]
    assert both.estimate == pytest.approx(np.mean([interval.estimate for interval in alone]))
    widths = [interval.high - interval.low for interval in alone]
    assert 0.5 * min(widths) < both.high - both.low < 0.9 * max(widths)


def test_parts_of_one_system_only_are_refused(make_sets) -> None:
    pairs = _in_folds(pair_scores(*make_sets(4.0)), 0)
    with pytest.raises(ValueError, match="got 2 folds of one system and 1"):
        paired_bootstrap_mean_accuracy([pairs, pairs], [pairs])
