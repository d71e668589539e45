import pytest
import torch

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.identification import cmc, rank1


def _set(angles: list[float], identity: list[int], index: list[int]) -> EmbeddingSet:
    radians = torch.tensor(angles).deg2rad()
    ids = torch.zeros(len(index), dtype=torch.int64)
    return EmbeddingSet(
        torch.stack([radians.cos(), radians.sin()], 1), torch.tensor(identity), torch.tensor(index), ids, ids
    )


def test_rank1_of_a_case_worked_by_hand() -> None:
    # Gallery after one image a person: 0 at 0 degrees (index 1, not 4), 1 at 90, 2 at 180.
    gallery = _set([60, 180, 0, 90], [0, 2, 0, 1], [4, 3, 1, 2])
    probe = _set(
        [10, 50, 100, 170, 5], [0, 0, 1, 1, 0], [4, 5, 6, 7, 1]
    )  # right, wrong, right, wrong, left out: the gallery's own image
    assert rank1(gallery, probe) == pytest.approx(0.5)
    assert cmc(gallery, probe, 3).tolist() == pytest.approx([0.5, 1.0, 1.0])


def test_cmc_equals_sorted_loop(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    first = {int(p): min(i for i in range(len(gallery)) if gallery.identity[i] == p) for p in gallery.identity}
    used = {int(gallery.index[i]) for i in first.values()}
    ranks = []
    for j in range(len(probe)):
        if int(probe.index[j]) not in used:
            order = sorted(first, key=lambda p: -float(gallery.embedding[first[p]] @ probe.embedding[j]))
            ranks.append(order.index(int(probe.identity[j])) + 1)
    expected = [sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 2, 3, 4, 5, 6)]
    assert 0.2 < expected[0] < 0.95
    assert cmc(gallery, probe, 6).tolist() == pytest.approx(expected)


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
    gallery = _set([0, 90, 60], [0, 0, 1], [0, 1, 2])
    probe = _set([80], [0], [3])
    assert float(cmc(gallery, probe, 1)[0]) == 0.0
    assert float(cmc(gallery, probe, 1, images="all")[0]) == 1.0


def test_cmc_rejects_unknown_images(make_sets) -> None:
    with pytest.raises(ValueError, match='images is "mean"'):
        cmc(*make_sets(1.0), k=1, images="mean")  # type: ignore[arg-type]


def test_rank1_of_constant_embeddings(make_sets) -> None:
    gallery, probe = make_sets(1.0)
    gallery.embedding[:] = torch.nn.functional.one_hot(torch.tensor(0), 16)
    probe.embedding[:] = gallery.embedding[0]
    assert rank1(gallery, probe) == 0.0


def test_rank1_rejects_unknown_identity() -> None:
    with pytest.raises(ValueError, match="1 people of the probes \\(first: 9\\)"):
        rank1(_set([0], [0], [0]), _set([0], [9], [1]))


def test_k_below_one_is_refused(make_sets) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        cmc(*make_sets(1.0), k=0)
