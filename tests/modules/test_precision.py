"""What a trainer's precision may change, and what it must not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deocc.modules import DistillationModule, InpaintingModule
from tests.modules.test_inpainting import SMALL, faces, fit


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> DistillationModule:
    folder = tmp_path_factory.mktemp("stage1")
    stage1 = InpaintingModule(**SMALL, identity_weight=0, perceptual_weight=0, adversarial_weight=0)
    fit(stage1, folder, steps=1).save_checkpoint(folder / "a.ckpt")
    module = DistillationModule(str(folder / "a.ckpt"), student_input="both", instance_weight=0)
    module.center = module.teacher(faces(8)["face"]).mean(0)
    return module


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def evaluated(module: DistillationModule, low: bool) -> dict[str, torch.Tensor]:
    with torch.no_grad(), autocast(low):
        for loader in (0, 1):
            module.test_step(faces(), 0, loader)
        predicted = module.predict_step(faces(), 0)["embedding"]
        called = module(faces()["masked_face"])
    rows = {name: embeddings.embedding for name, embeddings in module.comparison.collect()[0].items()}
    return {**rows, "predicted": predicted, "called": called}


def test_evaluation_in_bfloat16_equals_that_in_float32(module: DistillationModule) -> None:
    low, full = evaluated(module, True), evaluated(module, False)
    assert len(full) == 11
    for name, embedding in full.items():
        torch.testing.assert_close(low[name], embedding, atol=1e-5, rtol=0)


def test_the_teachers_targets_in_bfloat16_equal_those_in_float32(
    module: DistillationModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def terms(student: torch.Tensor, teacher: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        seen.append((student, teacher))
        return {"pair": student.sum()}

    monkeypatch.setattr(module, "_terms", terms)
    for low in (True, False):
        with autocast(low):
            module.training_step(faces(), 0)
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-5, rtol=0)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-5)  # the student's layers did run in bfloat16


def test_restoration_in_bfloat16_equals_that_in_float32(tmp_path: Path) -> None:
    module = InpaintingModule(**SMALL, identity_weight=0, perceptual_weight=0, adversarial_weight=0)
    with torch.no_grad():
        full = module.validation_step(faces(), 0, 1)
        with autocast(True):
            low = module.validation_step(faces(), 0, 1)
    assert torch.equal(low["completed_face"], full["completed_face"])
