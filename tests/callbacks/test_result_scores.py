"""The pair scores that a test leaves: the same pairs as in results.json, of bare faces too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deocc.callbacks.results import _clean_scores, _scores
from deocc.evaluation import EmbeddingSet, build_results, equal_error_rate
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.results import CLEAN_ROWS
from deocc.modules.evaluation import GALLERIES, PROBES

TRAINER: Any = SimpleNamespace(datamodule=SimpleNamespace(protocol=AllPairs()))


def _embeddings(seed: int, kind: int) -> EmbeddingSet:
    """Noisy embeddings of six people with three images each."""
    index, generator = torch.arange(18), torch.Generator().manual_seed(seed)
    noisy = torch.eye(6)[index % 6] + 0.5 * torch.randn(18, 6, generator=generator)
    return EmbeddingSet(
        torch.nn.functional.normalize(noisy, dim=1), index % 6, index, torch.full_like(index, kind), index * 0
    )


@pytest.fixture
def embeddings() -> dict[str, EmbeddingSet]:
    return {
        name: _embeddings(number, -1 if name in GALLERIES else 0) for number, name in enumerate((*GALLERIES, *PROBES))
    }


def test_scores_are_those_of_the_results(embeddings: dict[str, EmbeddingSet]) -> None:
    galleries = [embeddings[name] for name in GALLERIES]
    probes = {name: embeddings[name] for name in PROBES}
    predicted = dict(zip(("teacher", "student"), galleries[2:], strict=True))
    results = build_results(*galleries[:2], probes, {}, ["box"], {}, replicates=1, predicted_mask_galleries=predicted)
    scores = _scores(TRAINER, embeddings) | _clean_scores(TRAINER, embeddings)
    found = {row: equal_error_rate(pairs.similarity, pairs.same) for row, pairs in scores.items()}
    assert found == {row: figures["eer"] for row, figures in results["rows"].items()}
    assert set(found) == {*PROBES, *CLEAN_ROWS} and len(set(found.values())) > 4


def test_rows_without_embeddings_are_left_out(embeddings: dict[str, EmbeddingSet]) -> None:
    known = {name: embeddings[name] for name in ("gallery_teacher", "teacher_masked")}
    assert list(_scores(TRAINER, known)) == ["teacher_masked"] and list(_clean_scores(TRAINER, known)) == [
        "teacher_clean"
    ]
    assert _scores(TRAINER, {}) == {} and _clean_scores(TRAINER, {}) == {}


def test_predicted_masks_without_a_gallery_of_their_own(embeddings: dict[str, EmbeddingSet]) -> None:
    known = {name: embeddings[name] for name in ("gallery_student", "student_predicted_mask")}
    scores = _scores(TRAINER, known)["student_predicted_mask"]
    expected = AllPairs().cross(embeddings["gallery_student"], embeddings["student_predicted_mask"])
    assert torch.equal(scores.similarity, expected.similarity)
