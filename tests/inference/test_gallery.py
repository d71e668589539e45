from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.evaluation.thresholds import Calibration, Rates, Separation, Threshold
from deocc.inference.gallery import GalleryFace, Match, PersonIndex, answer, find_conflicts, limit_for
from deocc.inference.pipeline import condition_of

RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10)


def normalise(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def random_embeddings(count: int, seed: int) -> NDArray[np.float32]:
    return normalise(np.random.default_rng(seed).standard_normal((count, 128)))


def perturb(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Other embeddings of the same people, with a similarity of about 0.75."""
    noise = np.random.default_rng(seed).standard_normal(embeddings.shape) / embeddings.shape[1] ** 0.5
    return normalise(embeddings + 0.9 * noise)


def make_index(embeddings: NDArray[np.float32], people: list[str], description: str = "Flat") -> PersonIndex:
    index = PersonIndex(128, description)
    index.add(embeddings, people)
    return index


def test_index_equals_exhaustive_search() -> None:
    people = [f"p{place % 37}" for place in range(300)]
    embeddings, probes = random_embeddings(300, 0), random_embeddings(20, 1)
    found = make_index(embeddings, people).search(probes, 5)
    for row, values in zip(found, probes @ embeddings.T, strict=True):
        best: dict[str, float] = {}
        for value, name in zip(values.tolist(), people, strict=True):
            best[name] = max(value, best.get(name, -1))
        expected = sorted(best.items(), key=lambda item: -item[1])[:5]
        assert [match.person for match in row] == [name for name, _ in expected]
        np.testing.assert_allclose([match.similarity for match in row], [value for _, value in expected], atol=1e-6)
        assert all(people[match.place] == match.person for match in row)
        np.testing.assert_allclose(
            [values[match.place] for match in row], [match.similarity for match in row], atol=1e-6
        )


@pytest.mark.parametrize("description", ["HNSW32", "PCA16,Flat", "PCA16,Flat,RFlat", "SQ4", "PQ8x4"])
def test_index_returns_exact_similarities(description: str) -> None:
    """An approximate index only finds the candidates."""
    people = [f"p{place % 37}" for place in range(300)]
    embeddings, probes = random_embeddings(300, 0), random_embeddings(20, 1)
    rows = make_index(embeddings, people, description).search(probes, 5)
    for row, values in zip(rows, probes @ embeddings.T, strict=True):
        found = [match.similarity for match in row]
        np.testing.assert_allclose(found, [values[match.place] for match in row], atol=1e-6)
        assert found == sorted(found, reverse=True)
        assert len({match.person for match in row}) == 5


def test_index_searches_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = random_embeddings(600, 0)
    index = make_index(embeddings, [str(place) for place in range(600)])
    blocks, search = [], index._index.search

    def record(block: NDArray[np.float32], count: int) -> object:
        blocks.append(len(block))
        return search(block, count)

    monkeypatch.setattr(index, "_index", SimpleNamespace(search=record))
    assert [row[0].place for row in index.search(embeddings, 1)] == list(range(600))
    assert sum(blocks) == 600 and max(blocks) <= 256


def test_index_with_many_photos_of_one_person() -> None:
    often = perturb(np.repeat(random_embeddings(1, 0), 50, 0), 1)
    embeddings = np.concatenate([often, random_embeddings(3, 2)])
    (row,) = make_index(embeddings, ["often"] * 50 + ["a", "b", "c"]).search(embeddings[:1], 3)
    assert row[0].person == "often"
    assert len({match.person for match in row}) == 3


@pytest.mark.parametrize("description", ["Flat", "HNSW32", "IVF1,Flat"])
def test_index_with_fewer_people_than_top(description: str) -> None:
    embeddings = random_embeddings(4, 0)
    rows = make_index(embeddings, ["a", "a", "b", "c"], description).search(embeddings, 10)
    assert [row[0].person for row in rows] == ["a", "a", "b", "c"]
    assert all(sorted(match.person for match in row) == ["a", "b", "c"] for row in rows)


def test_approximate_index_recall() -> None:
    embeddings = random_embeddings(2000, 0)
    probes = perturb(embeddings[:200], 1)
    found = make_index(embeddings, [str(place) for place in range(2000)], "HNSW32").search(probes, 5)
    best = np.argsort(-(probes @ embeddings.T), axis=1)[:, :5].tolist()
    hits = [len({int(match.person) for match in row} & set(truth)) for row, truth in zip(found, best, strict=True)]
    assert np.mean(hits) >= 0.8 * 5


def test_index_of_too_few_faces() -> None:
    with pytest.raises(ValueError, match=r"cannot index 2 faces .*choose --index Flat"):
        make_index(random_embeddings(2, 0), ["a", "b"], "IVF16,Flat")


def make_calibration(tested: float | None = None) -> Calibration:
    """Limits 0.3, 0.5, 0.7 of clean faces for the rates 0.1, 0.01, 0.001, the last measured as `tested`."""
    test = None if tested is None else Rates(tested, 0.3, 0.1, 9, 90, 5)
    clean = (
        Threshold(1e-1, 0.3, 0.2, RATES),
        Threshold(1e-2, 0.5, 0.2, RATES),
        Threshold(1e-3, 0.7, 0.2, RATES, test),
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
def test_limit_follows_gallery_size(faces: int, wanted: float, same_from: float, gallery_rate: float) -> None:
    limit = limit_for(make_calibration(), "clean-clean", faces, wanted)
    assert limit.same_from == same_from
    assert limit.gallery_rate == pytest.approx(gallery_rate)


def test_limit_uses_the_measured_rate() -> None:
    limit = limit_for(make_calibration(tested=0.004), "clean-clean", 10, 0.01)
    assert (limit.same_from, limit.target, limit.rate) == (0.7, 0.001, 0.004)
    assert limit.gallery_rate == pytest.approx(0.04)
    assert limit_for(make_calibration(tested=0.0), "clean-clean", 10, 0.01).rate == 0.001


def test_limit_without_thresholds() -> None:
    with pytest.raises(ValueError, match="no threshold for masked-masked: too few validation people"):
        limit_for(make_calibration(), "masked-masked", 1, 0.01)


def test_answer_follows_limit_and_visibility() -> None:
    calibration = make_calibration()
    limit = limit_for(calibration, "clean-clean", 10, 0.01)
    cases = (((0.7, 0.1), 0.0), ((0.69,), 0.0), ((0.9, 0.85), 0.75), ((0.9,), 0.76), ((0.1,), 0.9), ((0.9, 0.895), 0.0))
    answers = []
    for similarities, covered in cases:
        matches = [Match(f"person {place}", similarity, place) for place, similarity in enumerate(similarities)]
        answers.append(answer(calibration, limit, matches, covered))
    assert answers == ["known", "unknown", "known", "not sure", "not sure", "not sure"]
    conditions = [condition_of(calibration, pair) for pair in ((0.0, 0.29), (0.3, 0.0), (0.3, 0.5))]
    assert conditions == ["clean-clean", "clean-masked", "masked-masked"]


def test_conflicts_between_people() -> None:
    embeddings = random_embeddings(4, 3)
    embeddings[2] = normalise(embeddings[[0]] + 1e-3 * embeddings[3])[0]  # anna's photo in bob's folder
    people = ["anna", "anna", "bob", "carl"]
    photos = [Path(f"{person}/{place}.jpg") for place, person in enumerate(people)]
    gallery = [
        GalleryFace(person, photo, row, 0.1) for person, photo, row in zip(people, photos, embeddings, strict=True)
    ]
    index = make_index(embeddings, people)
    problems = find_conflicts(gallery, index)
    assert [problem.photo for problem in problems] == ["anna/0.jpg", "bob/2.jpg"]
    assert "anna/0.jpg (anna) and bob/2.jpg (bob) show nearly the same face" in problems[0].reason
    hidden = [GalleryFace(face.person, face.photo, face.embedding, 0.6) for face in gallery]
    assert find_conflicts(hidden, index) == []
