"""Wilson and identity intervals and the paired bootstrap against slow oracles."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from deocc.evaluation import bootstrap
from deocc.evaluation.bootstrap import (
    PairsOfPeople,
    bootstrap_figures,
    simultaneous_intervals,
    tar_intervals,
    wilson,
)
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import (
    PairScores,
    curve_equal_error_rate,
    decisions,
    equal_error_rate,
    fold_accuracy,
    roc_curve,
)
from tests.evaluation.conftest import paired_bootstrap

pair_scores = AllPairs().cross


def _slow_replicates(
    first: PairScores, second: PairScores, replicates: int, seed: int | torch.Generator
) -> list[float]:
    """The weighted equal error rates, pair by pair, for the people that the fast form draws."""
    people = torch.cat([first.first_identity, first.second_identity]).unique().tolist()
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    drawn = torch.randint(len(people), (replicates, len(people)), generator=generator).tolist()
    differences = []
    for draw in drawn:
        count = {person: draw.count(position) for position, person in enumerate(people)}
        weight = [
            count[i] if i == j else count[i] * count[j]
            for i, j in zip(first.first_identity.tolist(), first.second_identity.tolist(), strict=True)
        ]
        curves = [roc_curve(pairs.similarity, pairs.same, torch.tensor(weight)) for pairs in (first, second)]
        rates = [float(curve_equal_error_rate(curve.far, curve.tar)) for curve in curves]
        differences.append(rates[0] - rates[1])
    return differences


@pytest.mark.parametrize("bins", [None, 400])
def test_bootstrap_equals_slow_loop(make_sets, monkeypatch: pytest.MonkeyPatch, bins: int | None) -> None:
    first, second = pair_scores(*make_sets(4.0, seed=1)), pair_scores(*make_sets(5.0, seed=2))
    if bins is not None:
        monkeypatch.setattr(bootstrap, "_BINS", bins)  # so few that bins hold several pairs
    interval = paired_bootstrap("eer", [first], [second], replicates=60, seed=4)
    slow = _slow_replicates(first, second, 60, seed=4)
    tolerance = 1e-9 if bins is None else 2e-3
    assert np.std(slow) > 0.01
    assert interval.mean == pytest.approx(np.mean(slow), abs=tolerance)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=tolerance)
    assert interval.estimate == equal_error_rate(first.similarity, first.same) - equal_error_rate(
        second.similarity, second.same
    )


def test_bootstrap_bins_are_accurate() -> None:
    generator = torch.Generator().manual_seed(0)
    people, number = 16, 120_000
    one, other = (torch.randint(people, (number,), generator=generator) for _ in range(2))
    other = torch.where(torch.rand(number, generator=generator) < 0.1, one, other)
    spread = torch.randn(people, generator=generator) * 0.3

    def scores(gain: float) -> PairScores:
        similarity = torch.randn(number, generator=generator) + (one == other) * (gain + spread[one])
        return PairScores(similarity, one == other, one, other)

    first, second = scores(2.0), scores(1.5)
    interval = paired_bootstrap("eer", [first], [second], replicates=8, seed=1)
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


def test_bootstrap_mean_equals_slow_loop(make_sets) -> None:
    firsts, seconds = _two_folds(make_sets, 4.0, seed=1), _two_folds(make_sets, 5.0, seed=2)
    interval = paired_bootstrap("eer", firsts, seconds, replicates=60, seed=4)
    generator = torch.Generator().manual_seed(4)
    folds = [_slow_replicates(first, second, 60, generator) for first, second in zip(firsts, seconds, strict=True)]
    slow = np.mean(folds, axis=0)
    slow = slow[~np.isnan(slow)]
    assert 30 < len(slow) < 60  # of three people, one in nine draws shows one only
    assert interval.mean == pytest.approx(np.mean(slow), abs=1e-9)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=1e-9)
    rates = [[equal_error_rate(pairs.similarity, pairs.same) for pairs in system] for system in (firsts, seconds)]
    assert interval.estimate == pytest.approx(np.mean(rates[0]) - np.mean(rates[1]), abs=1e-12)


def test_bootstrap_without_replicates_is_nan(make_sets, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, probe = make_sets(4.0)
    pairs = pair_scores(*(members.take(members.identity < 2) for members in (gallery, probe)))
    worse = pairs._replace(similarity=-pairs.similarity)
    monkeypatch.setattr(
        torch, "randint", lambda high, size, generator: torch.zeros(size, dtype=torch.int64)
    )  # always the first person
    interval = paired_bootstrap("eer", [worse], [pairs], replicates=3)
    assert interval.estimate == equal_error_rate(worse.similarity, worse.same) - equal_error_rate(
        pairs.similarity, pairs.same
    )
    assert all(math.isnan(value) for value in interval[1:])


def _slow_accuracy_differences(first: PairScores, second: PairScores, replicates: int, seed: int) -> list[float]:
    """The weighted accuracies, pair by pair: the mean of the accuracy over same pairs and that over different pairs."""
    people = sorted({*first.first_identity.tolist(), *first.second_identity.tolist()})
    drawn = torch.randint(
        len(people), (replicates, len(people)), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    right = [decisions(pairs).tolist() for pairs in (first, second)]
    pairs = list(zip(first.same.tolist(), first.first_identity.tolist(), first.second_identity.tolist(), strict=True))
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


def test_bootstrap_chunks_and_defaults(make_sets, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair_scores(*make_sets(4.0)), pair_scores(*make_sets(5.0))
    expected = paired_bootstrap("eer", [first], [second])
    assert expected == paired_bootstrap("eer", [first], [second], replicates=1000, seed=0)
    monkeypatch.setattr(bootstrap, "_CELLS", 1)
    assert paired_bootstrap("eer", [first], [second]) == pytest.approx(expected)


def test_bootstrap_rejects_bad_input(make_sets) -> None:
    gallery, probe = make_sets(4.0)
    pairs = _in_folds(pair_scores(gallery, probe), 0)
    alone = _in_folds(pair_scores(*(members.take(members.identity == 0) for members in (gallery, probe))), 0)
    fewer = pairs._replace(**{name: getattr(pairs, name)[1:] for name in pairs._fields})
    with pytest.raises(ValueError, match="different pairs"):
        bootstrap_figures([[pairs, fewer]])
    with pytest.raises(ValueError, match="1 people"):
        bootstrap_figures([[alone]])


def _in_folds(pairs: PairScores, seed: int) -> PairScores:
    return pairs._replace(fold=torch.randint(3, pairs.same.shape, generator=torch.Generator().manual_seed(seed)))


def test_bootstrap_accuracy_equals_loop(make_sets) -> None:
    first, second = (_in_folds(pair_scores(*make_sets(noise, seed=seed)), seed) for noise, seed in ((2.0, 1), (3.0, 2)))
    interval = paired_bootstrap("accuracy", [first], [second], replicates=25, seed=4)
    slow = _slow_accuracy_differences(first, second, 25, seed=4)
    assert np.std(slow) > 0.005
    assert interval.mean == pytest.approx(np.mean(slow), abs=1e-9)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=1e-9)
    assert interval.low < interval.estimate < interval.high


def test_bootstrap_accuracy_matches_folds(make_sets) -> None:
    """Of folds with as many same pairs as different ones, the usual case."""
    parts = []
    for noise, seed in ((2.0, 1), (3.0, 2)):
        pairs = pair_scores(*make_sets(noise, seed=seed))
        same, different = (chosen.nonzero().flatten()[:300] for chosen in (pairs.same, ~pairs.same))
        chosen = torch.stack(
            [same, different[torch.randperm(300, generator=torch.Generator().manual_seed(0))]], 1
        ).flatten()
        taken = PairScores(*(value[chosen] for value in pairs if value is not None))
        parts.append(taken._replace(fold=torch.arange(600) // 200))
    interval = paired_bootstrap("accuracy", [parts[0]], [parts[1]], replicates=5)
    assert interval.estimate == pytest.approx(fold_accuracy(parts[0]).mean - fold_accuracy(parts[1]).mean, abs=1e-9)


def test_mean_accuracy_separates_parts(make_sets) -> None:
    """The second part's similarities are shifted, so that a threshold common to both would be useless."""
    firsts = [_in_folds(pair_scores(*make_sets(4.0, seed=seed)), seed) for seed in (1, 2)]
    seconds = [_in_folds(pair_scores(*make_sets(7.0, seed=seed + 2)), seed) for seed in (1, 2)]
    one, other = ([part[0], part[1]._replace(similarity=part[1].similarity + 5)] for part in (firsts, seconds))
    assert paired_bootstrap("accuracy", one, other, 80, seed=3) == paired_bootstrap(
        "accuracy", firsts, seconds, 80, seed=3
    )
    both = paired_bootstrap("accuracy", firsts, seconds, 80, seed=3)
    alone = [
        paired_bootstrap("accuracy", [one], [other], 80, seed=3) for one, other in zip(firsts, seconds, strict=True)
    ]
    assert both.estimate == pytest.approx(np.mean([interval.estimate for interval in alone]))
    widths = [interval.high - interval.low for interval in alone]
    assert 0.5 * min(widths) < both.high - both.low < 0.9 * max(widths)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (71_234, 72_000)]
)
def test_wilson_equals_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_trials_is_nan() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def person_pairs(images: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Persons of all pairs of images of two people, who have so many images each."""
    identity = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    first, second = torch.triu_indices(len(identity), len(identity), 1)
    first, second = identity[first], identity[second]
    return first[first != second], second[first != second]


def test_identity_rate_equals_loop() -> None:
    first, second = person_pairs([1, 2, 3, 4, 5, 6])
    chosen = torch.rand(len(first), generator=torch.Generator().manual_seed(0)) < 0.2
    rows = list(zip(first.tolist(), second.tolist(), chosen.tolist(), strict=True))
    shares = {}
    for a, b in itertools.combinations(range(6), 2):
        hits = [hit for one, other, hit in rows if (one, other) == (a, b)]
        shares[a, b] = sum(hits) / len(hits)
    rate = sum(shares.values()) / 15
    sums = [sum(share - rate for pair, share in shares.items() if person in pair) for person in range(6)]
    effective = rate * (1 - rate) / (sum(value**2 for value in sums) / 15**2)
    found = PairsOfPeople(second + 3, first + 3).rate(chosen)
    assert found == pytest.approx((rate, *wilson(rate * effective, effective), effective)) and effective < len(chosen)


def test_identity_weights_sum_to_one() -> None:
    first, second = person_pairs([1, 2, 3])
    weight = PairsOfPeople(first, second).weight
    assert [float(weight[(first == a) & (second == b)].sum()) for a, b in ((0, 1), (0, 2), (1, 2))] == pytest.approx(
        [1, 1, 1]
    )


def test_identity_rate_of_genuine_pairs() -> None:
    """All pairs of two of five people are chosen: five independent observations, whatever the number of pairs."""
    person = torch.arange(5).repeat_interleave(torch.tensor([9, 1, 4, 2, 30]))
    assert PairsOfPeople(person, person).rate(person < 2) == pytest.approx((0.4, *wilson(2, 5), 5))


def test_identity_rate_when_pairs_agree() -> None:
    first, second = person_pairs([3] * 6)
    pairs = PairsOfPeople(first, second)
    for chosen, successes in ((torch.zeros(len(first)), 0), (torch.ones(len(first)), 6)):
        assert pairs.rate(chosen.bool()) == pytest.approx((successes / 6, *wilson(successes, 6), 6))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert math.isnan(PairsOfPeople(nothing, nothing).rate(nothing.bool()).low)


def test_identity_interval_covers_rate() -> None:
    """Each person and each two people shift similarities: at least 90 % of 95 % intervals must hold the true rate."""
    people, draws, target = 60, torch.Generator().manual_seed(0), 0.02
    first, second = person_pairs([1, 2, 6] * 20)
    pairs = PairsOfPeople(first, second)
    limit = NormalDist(0, (2 * 0.3**2 + 1 + 1) ** 0.5).inv_cdf(1 - target)
    covered = {"people": 0, "pairs": 0}
    for _ in range(200):
        person, both = torch.randn(people, generator=draws) * 0.3, torch.randn(people, people, generator=draws)
        similarity = person[first] + person[second] + both[first, second] + torch.randn(len(first), generator=draws)
        found = pairs.rate(similarity >= limit)
        covered["people"] += found.low <= target <= found.high
        low, high = wilson(int((similarity >= limit).sum()), len(first))
        covered["pairs"] += low <= target <= high
    assert covered["people"] >= 180 and covered["pairs"] <= 140, covered


def test_tar_intervals_or_their_reasons() -> None:
    same = torch.arange(1100) < 100
    similarity = torch.randn(1100, generator=torch.Generator().manual_seed(0)) + 2.0 * same
    answers, curve = tar_intervals(similarity, same), roc_curve(similarity, same)
    for name in ("1e-1", "1e-2", "1e-3"):
        tar = float(curve.tar[curve.far <= float(name) + 1e-9][-1])
        expected = binomtest(round(100 * tar), 100).proportion_ci(method="wilson")
        assert 0 < tar < 1
        assert answers[name] == pytest.approx({"tar": tar, "low": expected.low, "high": expected.high})
    assert answers["1e-4"]["reason"] == "not enough negatives: 1000, 10000 needed"
    assert math.isnan(float(answers["1e-4"]["tar"]))
    assert "999, 1000 needed" in str(tar_intervals(similarity[:-1], same[:-1])["1e-3"]["reason"])
    assert tar_intervals(similarity[100:], same[100:])["1e-1"]["reason"] == "not enough positives: 0, 1 needed"


def test_figures_equal_slow_loop(make_sets) -> None:
    """True accept rates pair by pair, for people drawn once for two models of the same pairs."""
    models = [pair_scores(*make_sets(noise, seed=seed)) for noise, seed in ((4.0, 1), (5.0, 2))]
    figures = bootstrap_figures([models], replicates=20, seed=3, names=["tar@1e-2", "eer"])
    people = torch.cat([models[0].first_identity, models[0].second_identity]).unique().tolist()
    drawn = torch.randint(len(people), (20, len(people)), generator=torch.Generator().manual_seed(3)).tolist()
    expected = []
    for draw in [None, *drawn]:
        rates = []
        for pairs in models:
            first, second = pairs.first_identity.tolist(), pairs.second_identity.tolist()
            count = {person: 1 if draw is None else draw.count(place) for place, person in enumerate(people)}
            weight = [count[i] if i == j else count[i] * count[j] for i, j in zip(first, second, strict=True)]
            curve = roc_curve(pairs.similarity, pairs.same, torch.tensor(weight))
            rates.append(
                max(tar for far, tar in zip(curve.far.tolist(), curve.tar.tolist(), strict=True) if far <= 0.01)
            )
        expected.append(sum(rates) / 2)
    assert np.std(expected) > 0.005
    assert figures["tar@1e-2"].tolist() == pytest.approx(expected, abs=1e-9)
    assert float(figures["eer"][0]) == pytest.approx(sum(equal_error_rate(*pairs[:2]) for pairs in models) / 2)


def test_figures_average_parts(make_sets) -> None:
    parts = [[_in_folds(pair_scores(*make_sets(noise, seed=1)), 0)] for noise in (4.0, 6.0)]
    together = bootstrap_figures(parts, replicates=2)
    alone = [bootstrap_figures([part], replicates=2) for part in parts]
    assert list(together) == ["accuracy", "eer", "tar@1e-2", "tar@1e-3"]
    for name, values in together.items():
        assert float(values[0]) == pytest.approx(float(alone[0][name][0] + alone[1][name][0]) / 2)


def test_unsupported_figures_are_nan(make_sets) -> None:
    gallery, probe = make_sets(4.0)
    few = pair_scores(*(members.take(members.identity < 3) for members in (gallery, probe)))
    assert 100 <= int((~few.same).sum()) < 1000
    figures = bootstrap_figures([[few]], replicates=60)
    assert figures["accuracy"].isnan().all() and figures["tar@1e-3"].isnan().all()
    one_person = figures["eer"].isnan()
    assert 0 < int(one_person.sum()) < 20, "in one of nine replicates"
    assert torch.equal(figures["tar@1e-2"].isnan(), one_person)


def test_simultaneous_intervals_cover_together() -> None:
    """Ten comparisons, each a mean of normal values: all ten intervals contain the truth in 95 % of the trials."""
    generator, covered = torch.Generator().manual_seed(0), []
    for _ in range(400):
        sample = torch.randn(200, 10, generator=generator, dtype=torch.float64)
        drawn = torch.randint(200, (400, 200), generator=generator)
        values = torch.cat([sample.mean(0)[None], sample[drawn].mean(1)]).T
        intervals = simultaneous_intervals(values)
        covered.append(bool(((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).all()))
    assert 0.91 < np.mean(covered) < 0.98, "each alone at 95 % would give 0.6"


def test_simultaneous_intervals_of_one_or_none() -> None:
    values = torch.randn(1, 2001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, 0] = 0.5
    low, high = simultaneous_intervals(values)[0].tolist()
    assert (low + high) / 2 == pytest.approx(0.5) and (high - low) / 2 == pytest.approx(1.96, abs=0.1)
    unknown = torch.full((1, 2001), math.nan, dtype=torch.float64)
    both = simultaneous_intervals(torch.cat([values, unknown]))
    assert both[0].tolist() == pytest.approx([low, high]) and both[1].isnan().all()
    assert simultaneous_intervals(torch.zeros(1, 5, dtype=torch.float64)).tolist() == [[0, 0]]
