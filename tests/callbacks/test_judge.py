"""A judge's rows are its own embeddings of the clean, masked and completed faces."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deocc.callbacks import JudgeCallback
from deocc.modules.evaluation import Comparison
from deocc.networks import create_embedder


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> JudgeCallback:
    torch.manual_seed(0)
    network = create_embedder("sface", pretrained=False).freeze()
    monkeypatch.setattr("deocc.callbacks.judge.create_teacher", lambda *_, **__: network)
    return JudgeCallback()


def batch_of(kind: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    face, masked_face = (torch.rand(3, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    numbers = torch.arange(3)
    mask = {} if kind < 0 else {"masked_face": masked_face, "mask": torch.ones(3, 1, 64, 64)}
    return {
        "face": face,
        "identity": numbers,
        "index": numbers,
        "kind": numbers * 0 + kind,
        "seed": numbers * 0,
        **mask,
    }


def test_rows(judge: JudgeCallback) -> None:
    module: Any = SimpleNamespace(comparison=Comparison(), teacher=None, device=torch.device("cpu"))
    clean, masked = batch_of(-1, 0), batch_of(0, 1)
    completed_face = {"completed_face": masked["face"] / 2, "completed_face_predicted_mask": masked["face"] / 3}
    judge.on_test_start(None, module)  # type: ignore[arg-type]
    judge.on_test_batch_end(None, module, {}, clean, 0, 0)
    judge.on_test_batch_end(None, module, completed_face, masked, 0, 1)
    embeddings, _, _ = module.comparison.collect()
    faces = {
        "judge_clean": clean["face"],
        "judge_masked": masked["masked_face"],
        "judge_completed": completed_face["completed_face"],
        "judge_completed_predicted_mask": completed_face["completed_face_predicted_mask"],
    }
    assert embeddings.keys() == faces.keys()
    for row, face in faces.items():
        with torch.no_grad():
            expected = F.normalize(judge.network(face), dim=1)
        torch.testing.assert_close(embeddings[row].embedding, expected, atol=1e-6, rtol=0)
        assert embeddings[row].identity.tolist() == [0, 1, 2]


def test_real_occluders_have_no_completion_of_given_masks(judge: JudgeCallback) -> None:
    module: Any = SimpleNamespace(comparison=Comparison(), teacher=None, device=torch.device("cpu"))
    masked = batch_of(0, 1)
    judge.on_test_batch_end(None, module, {"completed_face_predicted_mask": masked["face"]}, masked, 0, 1)
    assert module.comparison.collect()[0].keys() == {"judge_masked", "judge_completed_predicted_mask"}


def test_stage1_is_refused(judge: JudgeCallback) -> None:
    with pytest.raises(ValueError, match="which stage 1 has none of: test a stage-2 run"):
        judge.on_test_start(None, SimpleNamespace())  # type: ignore[arg-type]


def test_untrained_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs trained weights"):
        JudgeCallback("iresnet18")
