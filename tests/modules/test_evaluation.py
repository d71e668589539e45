"""Evaluation: identity centres, float32 under any trainer precision, inference with and without a de-occluder."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from deocc.modules import DistillationModule, InpaintingModule, evaluation
from deocc.networks.embedders.embedder import centred, unit_embedding
from tests.modules.training import GENERATOR_ONLY, SMALL, faces, stage1_checkpoint


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> DistillationModule:
    stage1 = stage1_checkpoint(tmp_path_factory.mktemp("stage1"))
    module = DistillationModule(stage1, student_input="both", instance_weight=0)
    module.center = module.teacher(faces(8)["face"]).mean(0)
    return module


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def test_centers_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(40, 6)).astype(np.float32)
    identity = generator.permutation(np.arange(40) % 5 - 1)
    found = []
    for size in (16384, 7):
        monkeypatch.setattr(evaluation, "_CHUNK", size)
        mean = evaluation.mean_of_identities(embeddings, identity)
        found.append((mean, evaluation.identity_centers(embeddings, identity, mean)))
    by_label = [torch.from_numpy(embeddings[identity == label]) for label in range(4)]
    center = torch.stack([rows.mean(0) for rows in by_label]).mean(0)
    directions = [normalize(unit_embedding(rows, center).mean(0), dim=0) for rows in by_label]
    torch.testing.assert_close(found, [(center, torch.stack(directions))] * 2)
    subtracted = evaluation.identity_centers(embeddings, identity, center, centred)
    directions = [normalize(normalize(rows - center, dim=1).mean(0), dim=0) for rows in by_label]
    torch.testing.assert_close(subtracted, torch.stack(directions))


@torch.no_grad()
def embedded(module: DistillationModule, low: bool) -> dict[str, torch.Tensor]:
    with autocast(low):
        for loader in (0, 1):
            module.test_step(faces(), 0, loader)
        predicted = module.predict_step(faces(), 0)["embedding"]
        called = module(faces()["masked_face"])
    rows = {name: embeddings.embedding for name, embeddings in module.comparison.collect()[0].items()}
    return {**rows, "predicted": predicted, "called": called}


def test_embeddings_float32_under_autocast(module: DistillationModule) -> None:
    low, full = embedded(module, True), embedded(module, False)
    assert len(full) == 11
    for name, embedding in full.items():
        torch.testing.assert_close(low[name], embedding, atol=1e-5, rtol=0)


def test_teacher_float32_in_training(module: DistillationModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def terms(student: torch.Tensor, teacher: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        seen.append((student, teacher))
        return {"pair": student.sum()}

    monkeypatch.setattr(module, "_terms", terms)
    for low in (True, False):
        with autocast(low):
            module.training_step(faces(), 0)
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-5, rtol=0)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-5)  # the student did run in bfloat16


def test_restoration_float32_under_autocast() -> None:
    module, completed = InpaintingModule(**SMALL, **GENERATOR_ONLY), []
    for low in (True, False):
        with torch.no_grad(), autocast(low):
            completed.append(module.validation_step(faces(), 0, 1)["completed_face"])
    assert torch.equal(*completed)


def test_without_deoccluder() -> None:
    batch = faces()
    with pytest.raises(ValueError, match="no mask given, and no de-occluder"):
        DistillationModule(student_input="masked", mask_channel=True)(batch["masked_face"])
    module = DistillationModule(student_input="masked")
    expected = module(batch["masked_face"], batch["mask"])
    assert torch.equal(module(batch["masked_face"]), expected)
    predicted = module.predict_step(batch, 0)
    assert torch.equal(predicted["embedding"], expected)
    assert torch.equal(predicted["completed_face"], batch["masked_face"])
    assert predicted["mask"].shape == batch["mask"].shape and not predicted["mask"].any()


def test_prediction_completes_once(module: DistillationModule) -> None:
    completions: list[torch.Tensor] = []
    assert module.deoccluder is not None
    hook = module.deoccluder.register_forward_hook(lambda _module, _inputs, output: completions.append(output))
    predicted = module.predict_step(faces(), 0)
    hook.remove()
    assert len(completions) == 1 and torch.equal(predicted["completed_face"], completions[0])
    assert torch.equal(predicted["embedding"], module(faces()["masked_face"], predicted["mask"]))


def test_restoration_refuses_real_occluders() -> None:
    batch: Any = {key: value for key, value in faces().items() if key != "mask"}
    with pytest.raises(ValueError, match="real occluders"):
        InpaintingModule(**SMALL, **GENERATOR_ONLY).test_step(batch, 0, 1)
