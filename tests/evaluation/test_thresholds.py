"""Thresholds, the limit between masked and clean, and the visible share, against slow references and known cases."""

import json
import math
from dataclasses import replace

import pytest
import torch

from deocc.evaluation.bootstrap import PairsOfPeople
from deocc.evaluation.thresholds import (
    Calibration,
    CountedPairs,
    Separation,
    calibrate,
    covered_share,
    least_visible,
    separate,
)
from deocc.evaluation.verification import PairScores


def scored(genuine: torch.Tensor, impostor: torch.Tensor, repeats: float = 1) -> CountedPairs:
    same = torch.cat([torch.ones(len(genuine)), torch.zeros(len(impostor))]).bool()
    people = torch.zeros(len(same), dtype=torch.int64)
    return CountedPairs(PairScores(torch.cat([genuine, impostor]), same, people, people + (~same).long()), repeats)


def drawn(seed: int, repeats: float = 1, shift: float = 1.5) -> CountedPairs:
    draws = torch.Generator().manual_seed(seed)
    genuine, impostor = torch.randn(200, generator=draws) + shift, torch.randn(1000, generator=draws)
    return scored((genuine * 8).round() / 8, (impostor * 8).round() / 8, repeats)  # many ties


@pytest.mark.parametrize("shift", [0.5, 1.5, 8.0])
def test_thresholds_equal_search(shift: float) -> None:
    counted = drawn(0, shift=shift)
    pairs = counted.pairs
    scores, same = pairs.similarity.tolist(), pairs.same.tolist()
    genuine = [score for score, flag in zip(scores, same, strict=True) if flag]
    impostor = [score for score, flag in zip(scores, same, strict=True) if not flag]
    found = calibrate(counted)
    assert [threshold.target for threshold in found] == [1e-1, 1e-2]
    for threshold in found:
        lowest = min(
            t for t in set(scores) if sum(score >= t for score in impostor) <= threshold.target * len(impostor)
        )
        highest = max(t for t in set(genuine) if sum(score < t for score in genuine) <= 0.05 * len(genuine))
        assert (threshold.same, threshold.different) == (lowest, min(lowest, highest))
        rates = threshold.validation
        assert rates.false_accept_rate == pytest.approx(sum(score >= threshold.same for score in impostor) / 1000)
        assert rates.false_reject_rate == pytest.approx(sum(score < threshold.same for score in genuine) / 200)
        assert rates.called_different == pytest.approx(sum(score < threshold.different for score in genuine) / 200)
        assert rates.false_accept_rate <= threshold.target and rates.called_different <= 0.05
        assert (rates.genuine, rates.impostor, rates.people) == (200, 1000, 2)
        (first, second), accepted = (
            (torch.full((1000,), person) for person in (0, 1)),
            (pairs.similarity >= threshold.same)[~pairs.same],
        )
        measured = PairsOfPeople(first, second).rate(accepted)
        assert rates.interval == measured[1:3] and rates.effective_impostor == measured.effective


def test_band_between_same_and_different() -> None:
    genuine = torch.tensor([0.2] * 5 + [0.4] * 5 + [0.9] * 90)
    impostor = torch.tensor([0.5] * 10 + [0.45] + [0.1] * 89)  # eleven in a hundred from 0.45 on
    (threshold,) = calibrate(scored(genuine, impostor))
    assert [threshold.target, threshold.different, threshold.same] == pytest.approx([0.1, 0.4, 0.5])
    assert threshold.validation.false_reject_rate == pytest.approx(
        0.1
    ) and threshold.validation.called_different == pytest.approx(0.05)


def test_person_of_many_photos_counts_once() -> None:
    """Person 0 resembles everybody, but has 90 of 100 photos: nine of the ten other pairs of people decide."""
    identity = torch.cat([torch.zeros(91), torch.arange(1, 11).repeat_interleave(10)]).long()
    first, second = torch.triu_indices(len(identity), len(identity), 1)
    one, other = identity[first], identity[second]
    similarity = torch.where(one == other, 1.0, torch.where(one == 0, 0.8, torch.linspace(0, 0.7, len(one))))
    (threshold, *_) = calibrate(CountedPairs(PairScores(similarity, one == other, one, other), 1))
    impostor, with_first = one != other, (one == 0) & (other > 0)
    assert float(with_first[impostor].float().mean()) > 0.6  # their share of all pairs, 10 of 55 pairs of people
    assert threshold.target == 0.1 and threshold.same > 0.8 and threshold.validation.false_accept_rate == 0
    assert calibrate(CountedPairs(PairScores(similarity, one == other, one, other), 1), None)[0].validation.people == 11


def test_repeated_pairs_count_once() -> None:
    assert [threshold.target for threshold in calibrate(drawn(0, repeats=2))] == [1e-1, 1e-2]
    assert calibrate(drawn(0, repeats=2))[0].validation.impostor == 500
    assert calibrate(drawn(0, repeats=2.1)) == ()  # 95 genuine pairs: five in a hundred are less than five
    few = scored(torch.ones(100), torch.linspace(-1, 0, 499))
    assert [threshold.target for threshold in calibrate(few)] == [1e-1]


def test_target_that_accepts_none_left_out() -> None:
    assert calibrate(scored(torch.zeros(100), torch.ones(500))) == ()


def test_test_people_do_not_move_thresholds() -> None:
    alone, tried = calibrate(drawn(0)), calibrate(drawn(0), drawn(1))
    assert [replace(threshold, test=None) for threshold in tried] == list(alone)
    similarity, same = drawn(1).pairs[:2]
    for threshold in tried:
        assert threshold.test is not None
        assert threshold.test.false_accept_rate == pytest.approx(
            float((similarity >= threshold.same)[~same].float().mean())
        )
    only_genuine = scored(torch.ones(3), torch.zeros(0))
    assert calibrate(drawn(0), only_genuine) == alone


@pytest.mark.parametrize("seed", range(5))
def test_mask_limit_has_fewest_errors(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    clean, masked = torch.rand(17, generator=draws) * 0.6, torch.rand(23, generator=draws) * 0.6 + 0.3
    found = separate(clean, masked)

    def errors(limit: float) -> float:
        return (
            sum(value >= limit for value in clean.tolist()) / 17 + sum(value < limit for value in masked.tolist()) / 23
        )

    assert found.clean_called_masked + found.masked_called_clean == pytest.approx(errors(found.limit))
    assert errors(found.limit) == pytest.approx(min(errors(step / 2000) for step in range(2001)))


def test_mask_limit_is_in_the_middle() -> None:
    assert list(separate(torch.tensor([0.0, 0.1]), torch.tensor([0.5, 0.9]))) == pytest.approx([0.3, 0.0, 0.0])
    with pytest.raises(ValueError, match="0 masked faces"):
        separate(torch.rand(3), torch.zeros(0))
    with pytest.raises(ValueError, match="1 different shares"):
        separate(torch.zeros(3), torch.zeros(2))


def test_covered_share_of_face_only() -> None:
    mask = torch.zeros(4, 1, 112, 112)
    mask[1] = 1
    mask[2, :, :, :20] = 1  # beyond the cheek: 20 / 112 of the crop, the face begins 70 of 350 from its edge
    mask[3, :, :, :56] = 1
    assert covered_share(mask).tolist() == pytest.approx([0, 1, 0, 0.5], abs=1e-6)
    mask[3] = 0
    mask[3, :, 48:] = (
        1  # below the eyes; the area of an ellipse below the height h of its centre, in units of its half axis
    )
    height = -0.45 / 1.4
    share = 0.5 - (height * math.sqrt(1 - height**2) + math.asin(height)) / math.pi
    assert float(covered_share(mask)[3]) == pytest.approx(share, abs=0.01)


def test_face_ends_at_cheeks_and_chin() -> None:
    # Canonical crop of 350: an eye distance of 100 around (174.5, 149.5), 105 to either side, 95 up and 185 down
    edges = {
        "left": (3, slice(0, 70)),
        "right": (3, slice(280, 350)),
        "top": (2, slice(0, 55)),
        "bottom": (2, slice(335, 350)),
    }
    for axis, beyond in edges.values():
        for margin, touches in ((0, False), (5, True)):
            mask = torch.zeros(1, 1, 350, 350)
            mask.narrow(axis, max(0, beyond.start - margin), beyond.stop - beyond.start + margin).fill_(1)
            assert bool(covered_share(mask) > 0) == touches


def test_least_visible_leaves_one_percent() -> None:
    assert least_visible(torch.linspace(0, 1, 101, dtype=torch.float64)) == pytest.approx(0.01)


def calibration() -> Calibration:
    rows = {
        "clean-clean": calibrate(drawn(0), drawn(1)),
        "clean-masked": calibrate(scored(torch.ones(100), torch.linspace(-1, 0, 60))),
    }
    return Calibration({**rows, "masked-masked": ()}, Separation(0.25, 0.0, 0.1), 0.4, 64, "TinyFaces", "abc")


def test_calibration_survives_json() -> None:
    text = json.dumps(calibration().plain(), allow_nan=False)
    assert Calibration.from_plain(json.loads(text)) == calibration()


def test_earlier_calibration_is_read() -> None:
    plain = json.loads(json.dumps(calibration().plain()))
    for entry in plain["thresholds"]["clean-clean"]:
        for rates in (entry["validation"], entry["test"]):
            del rates["interval"], rates["effective_impostor"]
    found = Calibration.from_plain(plain).threshold("clean-clean")
    assert found.validation.interval is None and found.same == calibration().threshold("clean-clean").same


@pytest.mark.parametrize(
    "damaged",
    [None, [], "thresholds", {}, {"thresholds": {"clean-clean": ["x"]}}, {**calibration().plain(), "more": 1}],
)
def test_other_json_is_refused(damaged: object) -> None:
    with pytest.raises(ValueError, match="deocc test"):
        Calibration.from_plain(damaged)


def test_usual_target() -> None:
    assert (
        calibration().threshold("clean-clean").target == 1e-2 and calibration().threshold("clean-masked").target == 1e-1
    )
    assert calibration().threshold("clean-clean", 0.1).target == 1e-1


@pytest.mark.parametrize("target", [1e-3, 0.0, -1.0, 2.0])
def test_unknown_target_lists_known_ones(target: float) -> None:
    with pytest.raises(ValueError, match=r"choose one of 0\.1, 0\.01"):
        calibration().threshold("clean-clean", target)
    with pytest.raises(ValueError, match="too few validation people"):
        calibration().threshold("masked-masked")
