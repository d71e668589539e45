"""The index finds the people whom comparing with everybody finds, and limits shrink with the gallery."""

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.evaluation.calibration import Calibration, Rates, Separation, Threshold
from deocc.inference.gallery import PersonIndex, answer, condition_of, limit_for, list_indexes

RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _random(count: int, seed: int, dimension: int = 128) -> NDArray[np.float32]:
    return _unit(np.random.default_rng(seed).standard_normal((count, dimension)))


def _near(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Others of the same people, with a similarity of about 0.75."""
    noise = np.random.default_rng(seed).standard_normal(embeddings.shape) / embeddings.shape[1] ** 0.5
    return _unit(embeddings + 0.9 * noise)


def _recall(kind: str, embeddings: NDArray[np.float32], probes: NDArray[np.float32], top: int) -> float:
    """The share of the `top` most similar people that an index finds."""
    index = PersonIndex(embeddings, [str(place) for place in range(len(embeddings))], kind)
    found = [{int(match.person) for match in row} for row in index.search(probes, top)]
    best = np.argsort(-(probes @ embeddings.T), axis=1)[:, :top]
    return float(np.mean([len(row & set(truth.tolist())) / top for row, truth in zip(found, best, strict=True)]))


def test_flat_is_comparing_with_everybody() -> None:
    people = [f"p{place % 37}" for place in range(300)]
    embeddings, probes = _random(300, 0), _random(20, 1)
    found = PersonIndex(embeddings, people).search(probes, 5)
    similarity = probes @ embeddings.T
    for row, values in zip(found, similarity, strict=True):
        best = {
            person: max(float(value) for value, name in zip(values, people, strict=True) if name == person)
            for person in set(people)
        }
        expected = sorted(best.items(), key=lambda item: -item[1])[:5]
        assert [match.person for match in row] == [name for name, _ in expected]
        np.testing.assert_allclose([match.similarity for match in row], [value for _, value in expected], atol=1e-6)
        assert all(people[match.place] == match.person for match in row)
        np.testing.assert_allclose(
            [values[match.place] for match in row], [match.similarity for match in row], atol=1e-6
        )


def test_one_with_many_photos_hides_nobody() -> None:
    embeddings = np.concatenate([_near(np.repeat(_random(1, 0), 50, 0), 1), _random(3, 2)])
    people = ["often"] * 50 + ["a", "b", "c"]
    (row,) = PersonIndex(embeddings, people).search(embeddings[:1], 3)
    assert row[0].person == "often" and len({match.person for match in row}) == 3


@pytest.mark.parametrize("kind", list_indexes())
def test_asking_for_more_people_than_there_are_gives_all(kind: str) -> None:
    embeddings = _random(4, 0)
    rows = PersonIndex(embeddings, ["a", "a", "b", "c"], kind).search(embeddings, 10)
    assert [row[0].person for row in rows] == ["a", "a", "b", "c"]
    assert all(sorted(match.person for match in row) == ["a", "b", "c"] for row in rows)


@pytest.mark.parametrize(
    ("kind", "top", "least"),
    [("flat", 5, 1.0), ("hnsw", 5, 0.9), ("ivf", 1, 0.9)],
)
def test_of_known_people_nearly_all_are_found(kind: str, top: int, least: float) -> None:
    embeddings = _random(4000, 0)
    assert _recall(kind, embeddings, _near(embeddings[:200], 1), top) >= least


def test_hnsw_finds_the_nearest_even_where_nothing_is_near() -> None:
    assert _recall("hnsw", _random(4000, 0), _random(200, 1), 5) > 0.9


def test_what_cannot_be_indexed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown index 'tree': choose one of flat, ivf, hnsw"):
        PersonIndex(_random(2, 0), ["a", "b"], "tree")
    with pytest.raises(ValueError, match="N names"):
        PersonIndex(_random(2, 0), ["a"])
    with pytest.raises(ValueError, match="N at least 1"):
        PersonIndex(_random(0, 0), [])
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'faiss-cpu: pip install "deocc\[identify\]"'):
        PersonIndex(_random(2, 0), ["a", "b"])


def _calibration(tested: float | None = None) -> Calibration:
    """Limits 0.3, 0.5 and 0.7 for rates of 0.1, 0.01 and 0.001 of clean faces; `tested` is what test people showed for 0.001."""
    tried = None if tested is None else Rates(tested, 0.3, 0.1, 9, 90, 5)
    clean = (
        Threshold(1e-1, 0.3, 0.2, RATES),
        Threshold(1e-2, 0.5, 0.2, RATES),
        Threshold(1e-3, 0.7, 0.2, RATES, tried),
    )
    rows = {"clean-clean": clean, "clean-masked": (Threshold(1e-2, 0.4, 0.2, RATES),), "masked-masked": ()}
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.25, 64, "Faces", "0")


@pytest.mark.parametrize(
    ("faces", "wanted", "same_from", "gallery_rate"),
    [
        (1, 0.01, 0.5, 0.01),
        (10, 0.01, 0.7, 0.01),
        (11, 0.01, 0.7, 0.011),
        (10, 0.1, 0.5, 0.1),
        (1, 0.5, 0.3, 0.1),
        (5000, 0.01, 0.7, 1.0),
    ],
)
def test_the_limit_is_the_lowest_that_keeps_the_rate_over_the_gallery(
    faces: int, wanted: float, same_from: float, gallery_rate: float
) -> None:
    limit = limit_for(_calibration(), "clean-clean", faces, wanted)
    assert limit.same_from == same_from and limit.gallery_rate == pytest.approx(gallery_rate)


def test_a_rate_that_test_people_exceeded_counts_as_they_showed_it() -> None:
    limit = limit_for(_calibration(tested=0.004), "clean-clean", 10, 0.01)
    assert (limit.same_from, limit.target, limit.rate) == (0.7, 0.001, 0.004) and limit.gallery_rate == pytest.approx(
        0.04
    )
    assert limit_for(_calibration(tested=0.0), "clean-clean", 10, 0.01).rate == 0.001


def test_a_condition_without_thresholds_is_refused() -> None:
    with pytest.raises(ValueError, match="no threshold for masked-masked: too few validation people"):
        limit_for(_calibration(), "masked-masked", 1)


def test_the_answer_follows_from_limit_and_what_is_in_view() -> None:
    known = _calibration()
    limit = limit_for(known, "clean-clean", 10)
    answers = [answer(known, limit, *each) for each in ((0.7, 0.0), (0.69, 0.0), (0.9, 0.75), (0.9, 0.76), (0.1, 0.9))]
    assert answers == ["known", "unknown", "known", "not sure", "not sure"]
    assert [condition_of(known, pair) for pair in ((0.0, 0.29), (0.3, 0.0), (0.3, 0.5))] == [
        "clean-clean",
        "clean-masked",
        "masked-masked",
    ]
