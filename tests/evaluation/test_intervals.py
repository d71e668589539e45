import math

import pytest
import torch
from scipy.stats import binomtest

from deocc.evaluation import true_accept_rate
from deocc.evaluation.intervals import tar_intervals, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (71_234, 72_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_equals_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_trials_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"), [((3, 2), "3 successes in 2"), ((-1, 2), "-1 successes"), ((1, 2, 1.0), "confidence of 1.0")]
)
def test_wilson_of_impossible_counts_is_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


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
