"""Protocols and ranks against loops over every pair of faces."""

import numpy as np
import pytest
import torch

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs, Galleries, ListedPairs, cmc
from deocc.evaluation.report import setting_cells, summary_table
from deocc.evaluation.results import build_results, score_row
from deocc.evaluation.verification import PairScores

FIRST, SECOND = np.array([100, 107, 129, 500, 103]), np.array([101, 120, 100, 101, 104])
SAME, FOLD = np.array([True, False, False, False, True]), np.array([0, 0, 1, 1, 1])


@pytest.fixture
def listed() -> ListedPairs:
    """Five pairs, of which the fourth names an image (500) that was not embedded."""
    return ListedPairs(FIRST, SECOND, SAME, FOLD)


def as_set(pairs: PairScores) -> set[tuple[float, bool, int, int, int]]:
    assert pairs.fold is not None
    columns = (pairs.similarity, pairs.same, pairs.first_identity, pairs.second_identity, pairs.fold)
    return set(
        zip(
            [round(value, 5) for value in pairs.similarity.tolist()],
            *(column.tolist() for column in columns[1:]),
            strict=True,
        )
    )


def slow(first: EmbeddingSet, second: EmbeddingSet, masked: bool) -> set[tuple[float, bool, int, int, int]]:
    """Every listed pair by a loop over both sets; of two masked faces those of one kind and draw."""
    found = set()
    first_draw, second_draw = first.draw().tolist(), second.draw().tolist()
    for a, b, same, fold in zip(FIRST, SECOND, SAME, FOLD, strict=True):
        for i in range(len(first)):
            for j in range(len(second)):
                alike = (first.kind[i], first_draw[i]) == (second.kind[j], second_draw[j]) or not masked
                if first.index[i] == a and second.index[j] == b and alike:
                    similarity = round(float((first.embedding[i] * second.embedding[j]).sum()), 5)
                    found.add((similarity, bool(same), int(first.identity[i]), int(second.identity[j]), int(fold)))
    return found


def test_listed_pairs_follow_list(make_sets, listed: ListedPairs) -> None:
    gallery, probe = make_sets(3.0)
    assert as_set(listed.cross(gallery, probe)) == slow(gallery, probe, masked=False)
    assert as_set(listed.within(probe)) == slow(probe, probe, masked=True)
    assert as_set(listed.within(gallery)) == slow(gallery, gallery, masked=True)
    assert len(listed.cross(gallery, probe).same) == 4 * 2 * 3 and len(listed.within(gallery).same) == 4
    assert listed.images is not None and listed.images.tolist() == [100, 101, 103, 104, 107, 120, 129, 500]


def mixed(probe: EmbeddingSet, seeds: int) -> EmbeddingSet:
    """Of probes under two kinds, the first draws of each image, each under a kind that was drawn for image and draw."""
    draw, drawn = probe.draw(), torch.randint(2, (30, 3), generator=torch.Generator().manual_seed(1))
    return probe.take((draw < seeds) & (probe.kind == drawn[probe.index - 100, draw]))


def slow_mixed(gallery: EmbeddingSet, probe: EmbeddingSet) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Similarity and fold of the listed pairs by loops:

    clean against every mask of the second image; masks by order of their seeds.
    """
    crossed, within = [], []
    seed, index = probe.seed.tolist(), probe.index.tolist()
    masks = {
        image: sorted((i for i in range(len(probe)) if index[i] == image), key=seed.__getitem__) for image in set(index)
    }
    for a, b, fold in zip(FIRST.tolist(), SECOND.tolist(), FOLD.tolist(), strict=True):
        if a not in masks or b not in masks:
            continue
        one, other = masks[a], masks[b]
        clean = gallery.embedding[gallery.index.tolist().index(a)]
        crossed += [(round(float(clean @ probe.embedding[j]), 5), fold) for j in other]
        within += [
            (round(float(probe.embedding[i] @ probe.embedding[j]), 5), fold) for i, j in zip(one, other, strict=True)
        ]
    return sorted(crossed), sorted(within)


def scored(pairs: PairScores) -> list[tuple[float, int]]:
    assert pairs.fold is not None
    return sorted(zip([round(value, 5) for value in pairs.similarity.tolist()], pairs.fold.tolist(), strict=True))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_mixed_kinds_listed_pairs_per_seed(make_sets, listed: ListedPairs, seeds: int) -> None:
    gallery, complete = make_sets(3.0)
    probe = mixed(complete, seeds)
    assert len(probe) == seeds * len(gallery) and len(set(probe.kind.tolist())) == 2
    crossed, within = slow_mixed(gallery, probe)
    assert scored(listed.cross(gallery, probe)) == crossed and len(crossed) == 4 * seeds
    assert scored(listed.within(probe)) == within and len(within) == 4 * seeds
    assert listed.repeats(probe) == (seeds, seeds)


@pytest.mark.parametrize("seeds", [1, 3])
def test_mixed_kinds_all_pairs_per_seed(make_sets, seeds: int) -> None:
    gallery, complete = make_sets(3.0)
    probe = mixed(complete, seeds)
    images = len(gallery)
    assert len(AllPairs().cross(gallery, probe).same) == seeds * images * (images - 1)
    pairs = AllPairs().within(probe)
    assert len(pairs.same) == seeds * images * (images - 1) // 2
    people = torch.stack([pairs.first_identity, pairs.second_identity], 1).sort(1).values
    _, counts = torch.unique(people[~pairs.same], dim=0, return_counts=True)
    assert counts.unique().tolist() == [seeds * 25]  # five images of either person
    assert AllPairs().repeats(probe) == (seeds, seeds)


def test_mixed_kinds_use_second_image(make_sets, listed: ListedPairs) -> None:
    gallery, complete = make_sets(3.0)
    probe = mixed(complete, 1)
    kind_of = dict(zip(probe.index.tolist(), probe.kind.tolist(), strict=True))
    embedded = [(a, b) for a, b in zip(FIRST.tolist(), SECOND.tolist(), strict=True) if {a, b} <= kind_of.keys()]
    assert len({kind_of[b] for _, b in embedded}) == 2
    for kind in range(2):
        row = score_row(gallery, probe.take(probe.kind == kind), listed)
        assert sum(row["pairs"].values()) == sum(kind_of[b] == kind for _, b in embedded)
        both = sum(kind_of[a] == kind_of[b] == kind for a, b in embedded)
        assert sum(row["masked_masked"]["pairs"].values()) == both
    assert sum(score_row(gallery, probe, listed)["masked_masked"]["pairs"].values()) == len(embedded) == 4


def test_listed_pairs_skip_unlisted_faces(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    low = ListedPairs(np.array([100]), np.array([105]), np.array([False]), np.array([0]))
    assert len(low.cross(gallery, probe.take(probe.kind == 1)).same) == 3
    found = low.cross(gallery.take(gallery.index < 103), probe)
    assert (found.first_identity.unique().tolist(), found.second_identity.unique().tolist()) == ([0], [1])


def test_listed_pairs_give_accuracy(make_sets, listed: ListedPairs) -> None:
    gallery, masked = make_sets(3.0)
    assert len(listed.cross(gallery, masked.take(masked.kind == 9)).same) == 0
    gallery_student, student = make_sets(0.5, dimension=12)
    rows = {"teacher_clean": gallery, "teacher_masked": masked, "student_clean": gallery_student, "student": student}
    built = build_results(rows, {}, ("cloth", "hand"), {}, listed, replicates=5)
    assert built.content["protocol"] == "ListedPairs"
    assert set(built.content["student_minus_teacher_masked"]) == {"eer", "accuracy"}
    header, body = setting_cells(built.content)
    assert [row[1] for row in body] == ["clean-clean", "clean-masked", "masked-masked"] * 2
    assert all("±" in row[2] for row in body)
    assert "not enough negatives" in summary_table(built.content) and header[2].startswith("accuracy")


def test_galleries_keep_pairs(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    one, many = np.arange(6) * 5 + 101, np.concatenate([np.arange(6) * 5 + 101, np.arange(6) * 5 + 102])
    protocol = Galleries({"protocol2": one, "protocol1": many})
    chosen = {
        name: gallery.take(torch.isin(gallery.index, torch.as_tensor(images)))
        for name, images in (("2", one), ("1", many))
    }
    scores = protocol.identify(gallery, probe)
    assert scores["rank1"] == scores["rank1_protocol2"] == float(cmc(chosen["2"], probe, 1, images="all")[0])
    assert scores["cmc_protocol1"] == cmc(chosen["1"], probe, 6, images="all").tolist()
    assert scores["rank1_protocol1"] >= scores["rank1_protocol2"] - 0.2 and len(scores["cmc"]) == 6
    assert torch.equal(protocol.cross(gallery, probe).similarity, AllPairs().cross(gallery, probe).similarity)


def on_circle(angles: list[float], identity: list[int], index: list[int]) -> EmbeddingSet:
    radians = torch.tensor(angles).deg2rad()
    ids = torch.zeros(len(index), dtype=torch.int64)
    return EmbeddingSet(
        torch.stack([radians.cos(), radians.sin()], 1), torch.tensor(identity), torch.tensor(index), ids, ids
    )


def test_rank1_of_a_case_worked_by_hand() -> None:
    # Gallery after one image a person: 0 at 0 degrees (index 1, not 4), 1 at 90, 2 at 180.
    gallery = on_circle([60, 180, 0, 90], [0, 2, 0, 1], [4, 3, 1, 2])
    probe = on_circle(
        [10, 50, 100, 170, 5], [0, 0, 1, 1, 0], [4, 5, 6, 7, 1]
    )  # right, wrong, right, wrong, left out: the gallery's own image
    assert cmc(gallery, probe, 3).tolist() == pytest.approx([0.5, 1.0, 1.0])


def test_cmc_of_all_images_equals_loop(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    several = gallery.take(gallery.index % 5 < 3)  # probes of the other two images remain
    ranks = []
    for j in range(len(probe)):
        if int(probe.index[j]) not in several.index.tolist():
            nearest: dict[int, float] = {}
            for i, person in enumerate(several.identity.tolist()):
                nearest[person] = max(nearest.get(person, -2.0), float(several.embedding[i] @ probe.embedding[j]))
            ranks.append(sorted(nearest, key=lambda p: -nearest[p]).index(int(probe.identity[j])) + 1)
    assert len(ranks) == len(probe) * 2 // 5
    expected = [sum(rank <= k for rank in ranks) / len(ranks) for k in range(1, 7)]
    assert 0.2 < expected[0] < 0.95
    assert cmc(several, probe, 6, images="all").tolist() == pytest.approx(expected)


def test_cmc_of_all_images_finds_more() -> None:
    gallery = on_circle([0, 90, 60], [0, 0, 1], [0, 1, 2])
    probe = on_circle([80], [0], [3])
    assert float(cmc(gallery, probe, 1)[0]) == 0.0
    assert float(cmc(gallery, probe, 1, images="all")[0]) == 1.0


def test_rank1_of_constant_embeddings(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    gallery.embedding[:] = torch.nn.functional.one_hot(torch.tensor(0), 16)
    probe.embedding[:] = gallery.embedding[0]
    assert cmc(gallery, probe, 1).tolist() == [0.0]


def test_cmc_refuses_probes_without_gallery() -> None:
    with pytest.raises(ValueError, match="1 people of the probes \\(first: 9\\)"):
        cmc(on_circle([0], [0], [0]), on_circle([0], [9], [1]), 1)
