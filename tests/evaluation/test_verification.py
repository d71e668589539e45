import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from deocc.evaluation import (
    EmbeddingSet,
    VerificationMetric,
    area_under_curve,
    equal_error_rate,
    pair_scores,
    roc_curve,
    true_accept_rate,
    verification_scores,
    within_scores,
)


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
def test_roc_curve_and_area_equal_sklearn_with_ties_and_weights(weighted: bool) -> None:
    similarity, same, weight = _pairs()
    chosen = weight if weighted else None
    curve = roc_curve(similarity, same, chosen)
    far, tar, threshold = sklearn_metrics.roc_curve(
        same, similarity.double(), sample_weight=chosen, drop_intermediate=False
    )
    kept = np.isin(curve.threshold.numpy(), threshold)  # sklearn drops thresholds that only pairs of weight 0 have
    np.testing.assert_allclose(curve.far.numpy()[kept], far, atol=1e-12)
    np.testing.assert_allclose(curve.tar.numpy()[kept], tar, atol=1e-12)
    expected = sklearn_metrics.roc_auc_score(same, similarity.double(), sample_weight=chosen)
    assert area_under_curve(similarity, same, chosen) == pytest.approx(expected, abs=1e-12)


def test_a_weight_counts_a_pair_that_many_times() -> None:
    similarity, same, weight = _pairs()
    repeated = similarity.repeat_interleave(weight), same.repeat_interleave(weight)
    assert equal_error_rate(similarity, same, weight) == pytest.approx(equal_error_rate(*repeated), abs=1e-12)


def test_equal_error_rate_of_a_case_worked_by_hand() -> None:
    # Thresholds .9 .8 .6 .5: (FAR, 1 - TAR) = (0, 2/3) (0, 1/3) (1/2, 1/3) (1/2, 0): equal between the second
    # and the third, at FAR = 1/3
    similarity, same = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.1]), torch.tensor([True, True, False, True, False])
    assert equal_error_rate(similarity, same) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("similarity", "expected"), [([0.9, 0.8, 0.2, 0.1], 0.0), ([0.1, 0.2, 0.8, 0.9], 1.0), ([0.5] * 4, 0.5)]
)
def test_equal_error_rate_of_separated_swapped_and_tied_pairs(similarity: list[float], expected: float) -> None:
    assert equal_error_rate(torch.tensor(similarity), torch.tensor([True, True, False, False])) == pytest.approx(
        expected
    )


def test_pairs_of_one_similarity_have_half_of_the_area() -> None:
    assert area_under_curve(torch.full((4,), 0.5), torch.tensor([True, True, False, False])) == 0.5


def test_random_similarities_have_an_equal_error_rate_of_a_half() -> None:
    generator = torch.Generator().manual_seed(0)
    same = torch.rand(20000, generator=generator) < 0.5
    assert equal_error_rate(torch.rand(20000, generator=generator), same) == pytest.approx(0.5, abs=0.02)


def test_equal_error_rate_lies_on_the_line_between_the_slow_rates_around_it() -> None:
    similarity, same, _ = _pairs(seed=3)
    points = [(0.0, 0.0)] + [_slow_rates(similarity, same, t) for t in sorted(set(similarity.tolist()), reverse=True)]
    after = next(i for i, (far, tar) in enumerate(points) if far >= 1 - tar)
    share = np.linspace(0, 1, 200001)
    (far0, tar0), (far1, tar1) = points[after - 1], points[after]
    far, reject = far0 + share * (far1 - far0), 1 - tar0 - share * (tar1 - tar0)
    assert equal_error_rate(similarity, same) == pytest.approx(far[np.abs(far - reject).argmin()], abs=1e-5)


@pytest.mark.parametrize("far", [0.02, 0.1, 0.5, 1.0])
def test_true_accept_rate_equals_a_search_over_all_thresholds(far: float) -> None:
    similarity, same, _ = _pairs(seed=1)
    rates = [_slow_rates(similarity, same, threshold) for threshold in similarity.tolist()]
    assert true_accept_rate(similarity, same, far) == pytest.approx(
        max((tar for f, tar in rates if f <= far), default=0.0)
    )


def test_true_accept_rate_is_nan_just_where_far_is_less_than_one_pair() -> None:
    similarity = torch.cat([torch.linspace(0, 1, 100), torch.tensor([2.0])])
    same = torch.tensor([False] * 100 + [True])
    assert true_accept_rate(similarity, same, 1e-2) == 1.0
    assert math.isnan(true_accept_rate(similarity[1:], same[1:], 1e-2))


def test_weighted_rates_equal_those_of_repeated_pairs_and_pairs_of_weight_zero_support_nothing() -> None:
    similarity, same, weight = _pairs(2000, decimals=4)
    repeated = similarity.repeat_interleave(weight), same.repeat_interleave(weight)
    found, expected = verification_scores(similarity, same, weight), verification_scores(*repeated)
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert true_accept_rate(similarity, same, 1e-2, weight) == pytest.approx(true_accept_rate(*repeated, 1e-2))
    few = torch.cat([(~same).nonzero()[:99, 0], same.nonzero()[:, 0]])
    weight = torch.zeros_like(weight).index_fill_(0, few, 1)
    assert math.isnan(true_accept_rate(similarity, same, 1e-2, weight))
    assert math.isfinite(true_accept_rate(similarity, same, 1 / 99, weight))


def test_a_far_that_is_just_met_is_not_lost_to_rounding() -> None:
    similarity, same = torch.tensor([3.0, 2.0, *([1.0] * 99)]), torch.tensor([False, True] + [False] * 99)
    assert true_accept_rate(similarity, same, 1e-2) == 1.0


def test_thresholds_reproduce_the_rates_that_they_stand_for() -> None:
    similarity, same, _ = _pairs(2000, decimals=4)
    scores = verification_scores(similarity, same)
    far, tar = _slow_rates(similarity, same, scores["threshold@1e-2"])
    assert far <= 1e-2
    assert tar == pytest.approx(scores["tar@1e-2"])
    far, tar = _slow_rates(similarity, same, scores["threshold@eer"])
    assert far == pytest.approx(scores["eer"], abs=3e-3)


@pytest.mark.parametrize("same", [[True, True], [False, False], []])
def test_scores_without_both_sorts_of_pairs_are_nan(same: list[bool]) -> None:
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
def test_bad_pairs_are_refused(similarity: torch.Tensor, same: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_error_rate(similarity, same)


@pytest.mark.parametrize("far", [0, -0.1, 1.1])
def test_a_false_accept_rate_out_of_range_is_refused(far: float) -> None:
    with pytest.raises(ValueError, match="false accept rate"):
        true_accept_rate(*_pairs()[:2], far=far)


def test_weights_of_another_shape_are_refused() -> None:
    similarity, same, weight = _pairs()
    with pytest.raises(ValueError, match="of one shape"):
        roc_curve(similarity, same, weight[:-1])


def test_pair_scores_equal_a_loop_over_all_pairs(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    scores = pair_scores(gallery, probe)
    expected = [
        (float(gallery.embedding[i] @ probe.embedding[j]), int(gallery.identity[i]), int(probe.identity[j]))
        for i in range(len(gallery))
        for j in range(len(probe))
        if gallery.index[i] != probe.index[j]
    ]
    torch.testing.assert_close(scores.similarity, torch.tensor([e[0] for e in expected]))
    assert scores.first_person.tolist() == [e[1] for e in expected]
    assert scores.second_person.tolist() == [e[2] for e in expected]
    assert scores.same.tolist() == [e[1] == e[2] for e in expected]


def _sorted(similarity: list[float]) -> torch.Tensor:
    return torch.tensor(similarity).sort().values


def test_within_scores_compare_each_two_images_of_equal_draw_once(make_sets) -> None:
    _, probe = make_sets(1.0)
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
    torch.testing.assert_close(within_scores(probe).similarity.sort().values, _sorted(expected))


def test_within_scores_of_a_gallery_are_all_pairs_of_images(make_sets) -> None:
    gallery, _ = make_sets(1.0)
    assert len(within_scores(gallery).similarity) == len(gallery) * (len(gallery) - 1) // 2


def test_pairs_that_no_list_put_into_folds_have_none(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    assert pair_scores(gallery, probe).fold is within_scores(probe).fold is None


def test_scores_give_the_true_accept_rate_at_each_false_accept_rate() -> None:
    similarity, same, _ = _pairs(2000, decimals=4)
    scores = verification_scores(similarity, same)
    rates = [true_accept_rate(similarity, same, far) for far in (1e-1, 1e-2, 1e-3)]
    assert [scores[f"tar@{name}"] for name in ("1e-1", "1e-2", "1e-3")] == rates
    assert rates == sorted(rates, reverse=True)
    assert math.isnan(scores["tar@1e-4"])  # 1,400 pairs of different people


def test_within_scores_of_an_empty_set_are_empty(make_sets) -> None:
    empty: EmbeddingSet = make_sets(1.0)[0].select(kind=9)
    assert len(within_scores(empty).similarity) == 0


def test_metric_over_batches_equals_the_function_on_all_pairs() -> None:
    similarity, same, _ = _pairs()
    metric = VerificationMetric()
    for part in torch.arange(len(same)).split(70):
        metric.update(similarity[part], same[part])
    assert metric.compute() == pytest.approx(verification_scores(similarity, same), nan_ok=True)
