import pytest
import torch
from scipy.stats import binomtest

from deocc.evaluation.bootstrap import mcnemar


def _right(first_only: int, second_only: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decisions with these numbers of pairs that only one system decided correctly, and some others."""
    first = torch.tensor([True] * first_only + [False] * second_only + [True] * 5 + [False] * 3)
    second = torch.tensor([False] * first_only + [True] * second_only + [True] * 5 + [False] * 3)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    return first[order], second[order]


@pytest.mark.parametrize(
    "counts", [(1, 0), (3, 9), (9, 3), (10, 10), (0, 60), (480, 520), (5_200, 4_800), (30_000, 30_500)]
)
def test_p_value_equals_scipys_binomial_test(counts: tuple[int, int]) -> None:
    outcome = mcnemar(*_right(*counts))
    assert (outcome.first_only, outcome.second_only) == counts
    assert outcome.p_value == pytest.approx(binomtest(counts[0], sum(counts)).pvalue, rel=1e-8)


def test_systems_that_decide_alike_do_not_differ() -> None:
    assert mcnemar(*_right(0, 0)) == (0, 0, 1.0)


@pytest.mark.parametrize("second", [torch.ones(3, dtype=torch.bool), torch.ones(4), torch.ones(4, 1, dtype=torch.bool)])
def test_decisions_that_do_not_fit_are_refused(second: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="two bool tensors of one shape"):
        mcnemar(torch.ones(4, dtype=torch.bool), second)
