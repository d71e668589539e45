"""Protocols against loops over every pair of faces."""

import numpy as np
import pytest
import torch

from deocc.evaluation import AllPairs, EmbeddingSet, Galleries, ListedPairs, PairScores, build_results, cmc, pair_scores, summary_table
from deocc.evaluation.tables import setting_cells

FIRST, SECOND = np.array([100, 107, 129, 500, 103]), np.array([101, 120, 100, 101, 104])
SAME, FOLD = np.array([True, False, False, False, True]), np.array([0, 0, 1, 1, 1])


@pytest.fixture
def listed() -> ListedPairs:
    """Five pairs, of which the fourth names an image (500) that nobody embedded."""
    return ListedPairs(FIRST, SECOND, SAME, FOLD)


def as_set(pairs: PairScores) -> set[tuple[float, bool, int, int, int]]:
    assert pairs.fold is not None
    columns = (pairs.similarity, pairs.same, pairs.first_person, pairs.second_person, pairs.fold)
    return set(zip([round(value, 5) for value in pairs.similarity.tolist()], *(column.tolist() for column in columns[1:]), strict=True))


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


def test_listed_pairs_compare_what_the_list_says(make_sets, listed: ListedPairs) -> None:
    gallery, probe = make_sets(3.0)
    assert as_set(listed.cross(gallery, probe)) == slow(gallery, probe, masked=False)
    assert as_set(listed.within(probe)) == slow(probe, probe, masked=True)
    assert as_set(listed.within(gallery)) == slow(gallery, gallery, masked=True)
    assert len(listed.cross(gallery, probe).same) == 4 * 2 * 3 and len(listed.within(gallery).same) == 4
    assert listed.images is not None and listed.images.tolist() == [100, 101, 103, 104, 107, 120, 129, 500]


def test_faces_beyond_the_last_listed_one_are_left_out(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    low = ListedPairs(np.array([100]), np.array([105]), np.array([False]), np.array([0]))
    assert len(low.cross(gallery, probe.select(1)).same) == 3
    found = low.cross(gallery.take(gallery.index < 103), probe)
    assert (found.first_person.unique().tolist(), found.second_person.unique().tolist()) == ([0], [1])


def test_without_any_probe_there_are_no_pairs_and_no_numbers(make_sets, listed: ListedPairs) -> None:
    gallery, probe = make_sets(3.0)
    assert len(listed.cross(gallery, probe.select(9)).same) == 0


def test_a_list_gives_accuracies_in_every_setting(make_sets, listed: ListedPairs) -> None:
    gallery, masked = make_sets(3.0)
    gallery_student, student = make_sets(0.5, dimension=12)
    probes = {"teacher_masked": masked, "student": student}
    built = build_results(gallery, gallery_student, probes, {}, ("cloth", "hand"), {}, listed, replicates=5)
    assert built["protocol"] == "ListedPairs"
    header, body = setting_cells(built)
    assert [row[1] for row in body] == ["clean-clean", "clean-masked", "masked-masked"] * 2
    assert all("±" in row[2] for row in body)
    assert "not enough negatives" in summary_table(built) and header[2].startswith("accuracy")


@pytest.mark.parametrize("lengths", [(2, 1, 1, 1), (0, 0, 0, 0)])
def test_a_list_of_unequal_or_no_columns_is_refused(lengths: tuple[int, ...]) -> None:
    columns = [np.zeros(length, dtype=kind) for length, kind in zip(lengths, (np.int64, np.int64, np.bool_, np.int64), strict=True)]
    with pytest.raises(ValueError, match="of one shape"):
        ListedPairs(*columns)


def test_galleries_name_their_images_and_leave_the_pairs_as_they_are(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    one, many = np.arange(6) * 5 + 101, np.concatenate([np.arange(6) * 5 + 101, np.arange(6) * 5 + 102])
    protocol = Galleries({"protocol2": one, "protocol1": many})
    chosen = {name: gallery.take(torch.isin(gallery.index, torch.as_tensor(images))) for name, images in (("2", one), ("1", many))}
    scores = protocol.identify(gallery, probe)
    assert scores["rank1"] == scores["rank1_protocol2"] == float(cmc(chosen["2"], probe, 1, images="all")[0])
    assert scores["cmc_protocol1"] == cmc(chosen["1"], probe, 6, images="all").tolist()
    assert scores["rank1_protocol1"] >= scores["rank1_protocol2"] - 0.2 and len(scores["cmc"]) == 6
    assert torch.equal(protocol.cross(gallery, probe).similarity, pair_scores(gallery, probe).similarity)


def test_an_empty_gallery_is_refused() -> None:
    with pytest.raises(ValueError, match="galleries with images"):
        Galleries({"protocol2": np.zeros(0, dtype=np.int64)})


def test_all_pairs_give_the_whole_curve_of_ranks(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    scores = AllPairs().identify(gallery, probe)
    assert scores["cmc"][0] == scores["rank1"] and scores["cmc"][-1] == 1.0 and len(scores["cmc"]) == 6
