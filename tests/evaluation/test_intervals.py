import itertools
import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binomtest

from deocc.evaluation import true_accept_rate
from deocc.evaluation.bootstrap import PairsOfPeople, tar_intervals, wilson


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (71_234, 72_000)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_equals_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_trials_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 2), "3 successes in 2"), ((-1, 2), "-1 successes"), ((1, 2, 1.0), "confidence of 1.0")],
)
def test_wilson_of_impossible_counts_is_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


def person_pairs(images: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Persons of all pairs of images of two people, who have so many images each."""
    identity = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    first, second = torch.triu_indices(len(identity), len(identity), 1)
    first, second = identity[first], identity[second]
    return first[first != second], second[first != second]


def test_a_rate_over_people_equals_loops_over_them() -> None:
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


def test_weights_count_each_two_people_once() -> None:
    first, second = person_pairs([1, 2, 3])
    weight = PairsOfPeople(first, second).weight
    assert [float(weight[(first == a) & (second == b)].sum()) for a, b in ((0, 1), (0, 2), (1, 2))] == pytest.approx(
        [1, 1, 1]
    )


def test_of_pairs_of_one_person_each_person_counts_once() -> None:
    """All pairs of two of five people are chosen: five independent observations, whatever the number of pairs."""
    person = torch.arange(5).repeat_interleave(torch.tensor([9, 1, 4, 2, 30]))
    assert PairsOfPeople(person, person).rate(person < 2) == pytest.approx((0.4, *wilson(2, 5), 5))


def test_where_all_pairs_agree_people_are_counted() -> None:
    first, second = person_pairs([3] * 6)
    pairs = PairsOfPeople(first, second)
    for chosen, successes in ((torch.zeros(len(first)), 0), (torch.ones(len(first)), 6)):
        assert pairs.rate(chosen.bool()) == pytest.approx((successes / 6, *wilson(successes, 6), 6))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert math.isnan(PairsOfPeople(nothing, nothing).rate(nothing.bool()).low)


def test_the_interval_over_people_covers_the_rate_where_independent_pairs_do_not() -> None:
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


def test_tar_lies_in_its_interval_where_the_pairs_support_it_and_the_reason_stands_where_not() -> None:
    generator = torch.Generator().manual_seed(0)
    same = torch.arange(350) < 100
    similarity = torch.randn(350, generator=generator) + 2.0 * same
    answers = tar_intervals(similarity, same)
    for name, far in (("1e-1", 0.1), ("1e-2", 0.01)):
        tar = true_accept_rate(similarity, same, far)
        expected = binomtest(round(100 * tar), 100).proportion_ci(method="wilson")
        assert 0.2 < tar < 1
        assert answers[name] == pytest.approx({"tar": tar, "low": expected.low, "high": expected.high})
    assert answers["1e-3"]["reason"] == "not enough negatives: 250, 1000 needed"
    assert answers["1e-4"]["reason"] == "not enough negatives: 250, 10000 needed"
    assert math.isnan(float(answers["1e-4"]["tar"]))


def test_the_number_of_negatives_asked_for_is_enough() -> None:
    similarity, same = torch.linspace(0, 1, 1001), torch.arange(1001) == 1000
    assert tar_intervals(similarity, same, {"1e-3": 1e-3})["1e-3"]["tar"] == 1.0
    assert "999, 1000 needed" in str(tar_intervals(similarity[1:], same[1:], {"1e-3": 1e-3})["1e-3"]["reason"])


def test_without_pairs_of_one_person_the_reason_says_so() -> None:
    answers = tar_intervals(torch.linspace(0, 1, 20), torch.zeros(20, dtype=torch.bool), {"1e-1": 0.1})
    assert answers["1e-1"]["reason"] == "not enough positives: 0, 1 needed"
