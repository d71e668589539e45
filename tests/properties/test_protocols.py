"""Rates, ranks and the pairs of a protocol, on any scores and any people."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from deocc.evaluation import protocol
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs, ListedPairs, cmc
from deocc.evaluation.verification import equal_error_rate, operating_point, roc_curve, verification_scores
from tests.properties.strategies import SEEDS, Scores, for_all, image_sets, noise, relabelled, scored_pairs

FARS = st.floats(0.01, 1.0)
Sets = tuple[EmbeddingSet, EmbeddingSet]


@for_all(scores=scored_pairs(), seed=SEEDS)
def test_rates_depend_on_order_alone(scores: Scores, seed: int) -> None:
    similarity, same = scores
    given, moved = verification_scores(similarity, same), verification_scores(relabelled(similarity, seed), same)
    names = [name for name in given if not name.startswith("threshold")]
    assert [moved[name] for name in names] == pytest.approx([given[name] for name in names], nan_ok=True, abs=0)
    order = torch.randperm(len(same), generator=torch.Generator().manual_seed(seed % 2**63))
    assert verification_scores(similarity[order], same[order]) == pytest.approx(given, nan_ok=True, abs=1e-12)


@for_all(scores=scored_pairs())
def test_changing_sides_mirrors_rates(scores: Scores) -> None:
    similarity, same = scores
    eer, auc = equal_error_rate(similarity, same), verification_scores(similarity, same)["auc"]
    assert 0 <= eer <= 1 and 0 <= auc <= 1
    assert equal_error_rate(-similarity, ~same) == pytest.approx(eer, abs=1e-12)
    assert equal_error_rate(similarity, ~same) == pytest.approx(1 - eer, abs=1e-12)
    assert verification_scores(-similarity, ~same)["auc"] == pytest.approx(auc, abs=1e-12)
    assert verification_scores(similarity, ~same)["auc"] == pytest.approx(1 - auc, abs=1e-12)


@for_all(scores=scored_pairs())
def test_area_counts_ordered_pairs(scores: Scores) -> None:
    similarity, same = scores
    genuine, impostor = similarity[same].tolist(), similarity[~same].tolist()
    right = sum((a > b) + (a == b) / 2 for a, b in itertools.product(genuine, impostor))
    expected = right / (len(genuine) * len(impostor))
    assert verification_scores(similarity, same)["auc"] == pytest.approx(expected, abs=1e-12)


@for_all(scores=scored_pairs())
def test_eer_is_between_neighbours(scores: Scores) -> None:
    similarity, same = scores
    eer = equal_error_rate(similarity, same)
    highest, lowest = 1.0, 0.0
    for threshold in [*similarity.tolist(), math.inf]:
        accepted = similarity >= threshold
        errors = float(accepted[~same].double().mean()), float((~accepted)[same].double().mean())
        highest, lowest = min(highest, max(errors)), max(lowest, min(errors))
    assert lowest - 1e-12 <= eer <= highest + 1e-12


@for_all(scores=scored_pairs(), weight=st.lists(st.integers(1, 4), min_size=32, max_size=32))
def test_weight_repeats_a_pair(scores: Scores, weight: list[int]) -> None:
    similarity, same = scores
    times = torch.tensor(weight[: len(same)])
    repeated = roc_curve(similarity.repeat_interleave(times), same.repeat_interleave(times))
    for found, expected in zip(roc_curve(similarity, same, times), repeated, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@for_all(scores=scored_pairs(), fars=st.tuples(FARS, FARS))
def test_tar_rises_with_far(scores: Scores, fars: tuple[float, float]) -> None:
    curve, negatives = roc_curve(*scores), int((~scores[1]).sum())
    low, high, most = (operating_point(curve, negatives, far)[0] for far in (*sorted(fars), 1.0))
    assert math.isnan(low) or low <= high
    assert most == 1
    for column in (curve.far, curve.tar):
        assert bool((column.diff() >= 0).all()) and float(column[0]) == 0 and float(column[-1]) == 1


@for_all(scores=scored_pairs(), far=FARS, copies=st.integers(1, 30))
def test_threshold_keeps_its_target(scores: Scores, far: float, copies: int) -> None:
    similarity, same = (column.repeat(copies) for column in scores)
    curve, negatives = roc_curve(similarity, same), int((~same).sum())
    tar, threshold = operating_point(curve, negatives, far)
    if negatives < 1 / far * (1 - 1e-9):
        assert math.isnan(tar) and math.isnan(threshold)
        return
    accepted = similarity.double() >= threshold
    assert float(accepted[~same].double().mean()) <= far + 1e-9 and float(
        accepted[same].double().mean()
    ) == pytest.approx(tar)
    rejected = similarity.double()[~accepted]
    if len(rejected):
        assert float((similarity.double() >= rejected.max())[~same].double().mean()) > far


@for_all(sets=image_sets(), places=st.integers(1, 8), images=st.sampled_from(["first", "all"]))
def test_cmc_rises_to_one(sets: Sets, places: int, images: str) -> None:
    gallery, probe = sets
    people = len(gallery.identity.unique())
    curve = cmc(gallery, probe, people + places, images)  # type: ignore[arg-type]
    if bool(curve.isnan().any()):  # each probe is made from an image that stands for its person
        assert bool(curve.isnan().all())
        return
    assert (
        bool((curve.diff() >= 0).all()) and float(curve[0]) >= 0 and float(curve[people - 1]) == float(curve[-1]) == 1
    )
    assert torch.equal(cmc(gallery, probe, places, images), curve[:places])  # type: ignore[arg-type]


@for_all(sets=image_sets())
def test_rank_counts_similar_people(sets: Sets) -> None:
    gallery, probe = sets
    rows = list(zip(gallery.embedding, gallery.identity.tolist(), gallery.index.tolist(), strict=True))
    first = {person: min(index for _, other, index in rows if other == person) for _, person, _ in rows}
    faces = {person: embedding for embedding, person, index in rows if index == first[person]}
    ranks = []
    for embedding, person, index in zip(probe.embedding, probe.identity.tolist(), probe.index.tolist(), strict=True):
        if index not in first.values():
            similarity = {other: float(embedding @ face) for other, face in faces.items()}
            ranks.append(sum(value >= similarity[person] - 1e-6 for value in similarity.values()))
    expected = [
        sum(rank <= place for rank in ranks) / len(ranks) if ranks else math.nan for place in range(1, len(faces) + 1)
    ]
    assert cmc(gallery, probe, len(faces)).tolist() == pytest.approx(expected, nan_ok=True, abs=1e-12)


def _ranks(gallery: EmbeddingSet, probe: EmbeddingSet) -> list[float]:
    scores = AllPairs().identify(gallery, probe)
    return [scores["rank1"], *scores["cmc"]]


@for_all(sets=image_sets(), seed=SEEDS)
def test_ranks_ignore_order_and_rotation(sets: Sets, seed: int) -> None:
    gallery, probe = sets
    before = _ranks(*sets)
    turn = torch.linalg.qr(noise(seed, 3, 3)).Q
    order = [torch.randperm(len(members), generator=torch.Generator().manual_seed(seed % 2**63)) for members in sets]
    assert _ranks(gallery.take(order[0]), probe.take(order[1])) == pytest.approx(before, nan_ok=True)
    turned = [EmbeddingSet(m.embedding @ turn, m.identity, m.index, m.kind, m.seed) for m in sets]
    gaps = probe.embedding @ gallery.embedding.T
    if (
        float((gaps[:, :, None] - gaps[:, None]).abs().add(torch.eye(len(gallery))).min()) > 1e-5
    ):  # else rounding decides
        assert _ranks(*turned) == pytest.approx(before, nan_ok=True)


@for_all(sets=image_sets())
def test_all_pairs_of_different_images(sets: Sets) -> None:
    gallery, probe = sets
    crossed = AllPairs().cross(gallery, probe)
    assert len(crossed.same) == len(gallery) * len(probe) - len(probe)  # each probe's own image is in the gallery
    assert torch.equal(crossed.same, crossed.first_identity == crossed.second_identity)
    images, draws = len(gallery), int(probe.draw().max()) + 1
    assert len(AllPairs().within(gallery).same) == images * (images - 1) // 2
    kinds = len(probe) // images // draws
    assert len(AllPairs().within(probe).same) == draws * kinds**2 * images * (images - 1) // 2
    assert AllPairs().repeats(probe) == (kinds * draws, kinds**2 * draws)


@for_all(sets=image_sets(), most=st.integers(1, 400))
def test_narrowing_keeps_most_people(sets: Sets, most: int) -> None:
    named = dict(zip(("gallery", "probe"), sets, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "MAX_PAIRS", most)
        kept = AllPairs().narrow(named)

    def largest(gallery: EmbeddingSet, probe: EmbeddingSet) -> int:
        squares = [int(m.draw().bincount().square().sum()) // 2 for m in (gallery, probe)]
        return max(len(gallery) * max(len(gallery), len(probe)), *squares)

    everybody = sets[0].identity.unique()
    people = kept["gallery"].identity.unique()
    assert torch.equal(people, everybody[: len(people)]) and torch.equal(kept["probe"].identity.unique(), people)
    assert largest(**kept) <= most or len(people) <= 2
    if len(people) < len(everybody):
        more = [members.take(torch.isin(members.identity, everybody[: len(people) + 1])) for members in sets]
        assert largest(*more) > most


@pytest.mark.parametrize(
    ("kind", "most"), [(-1, 50_000), (0, 25_000)], ids=["clean against clean", "masked within a draw"]
)
def test_narrowing_of_unequal_people(kind: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 images of the first three people and one of everybody else:

    a limit shared out by people alone would keep too many.
    """
    identity = torch.cat([torch.arange(3).repeat_interleave(100), torch.arange(3, 103)])
    index = torch.arange(len(identity))
    members = EmbeddingSet(torch.eye(2)[index % 2], identity, index, torch.full_like(index, kind), index)
    monkeypatch.setattr(protocol, "MAX_PAIRS", most)
    assert AllPairs().narrow({"any": members})["any"].identity.unique().tolist() == [0, 1]


@for_all(sets=image_sets(least=2), data=st.data())
def test_listed_pairs_under_every_mask(sets: Sets, data: st.DataObject) -> None:
    gallery, probe = sets
    rows = st.lists(st.tuples(*[st.integers(0, len(gallery) - 1)] * 2, st.integers(0, 2)), min_size=1, max_size=8)
    one, other, fold = (np.array(column) for column in zip(*data.draw(rows), strict=True))
    person = gallery.identity.numpy()
    listed = ListedPairs(gallery.index.numpy()[one], gallery.index.numpy()[other], person[one] == person[other], fold)
    masks = len(probe) // len(gallery)
    crossed, clean, masked = listed.cross(gallery, probe), listed.within(gallery), listed.within(probe)
    assert (len(clean.same), len(crossed.same), len(masked.same)) == (len(one), masks * len(one), masks * len(one))
    for pairs in (crossed, clean, masked):
        assert torch.equal(pairs.same, pairs.first_identity == pairs.second_identity)
        assert pairs.fold is not None and pairs.fold.unique().tolist() == sorted(set(fold.tolist()))
    expected = (gallery.embedding[torch.from_numpy(one)] * gallery.embedding[torch.from_numpy(other)]).sum(1)
    torch.testing.assert_close(clean.similarity, expected)
    assert listed.narrow({"probe": probe})["probe"] is probe
