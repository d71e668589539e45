"""A judge's rows and distances are those of its own embeddings of the clean, masked and completed faces."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from deocc.callbacks import JudgeCallback, PerceptualCallback
from deocc.evaluation.perceptual import FrechetDistance, KernelDistance, PerceptualDistance
from deocc.modules.evaluation import Comparison
from deocc.networks import create_embedder


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> JudgeCallback:
    torch.manual_seed(0)
    network = create_embedder("sface", pretrained=False).freeze()
    monkeypatch.setattr("deocc.callbacks.judges.create_teacher", lambda *_, **__: network)
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
    with pytest.raises(ValueError, match="and stage 1 computes none: test a stage-2 run"):
        judge.on_test_start(None, SimpleNamespace())  # type: ignore[arg-type]


def test_untrained_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs trained weights"):
        JudgeCallback("iresnet18")


def batches() -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Two outputs of a step with their batches of three partly covered faces."""
    draws = torch.Generator().manual_seed(0)
    made = []
    for _ in range(2):
        face = torch.rand(3, 3, 64, 64, generator=draws) * 2 - 1
        mask = torch.zeros(3, 1, 64, 64)
        mask[:, :, 30:] = 1
        completed = torch.where(mask > 0, face * 0.5, face)
        made.append(({"completed_face": completed}, {"face": face, "mask": mask, "kind": torch.tensor([0, 1, 0])}))
    return made


def test_perceptual_scores_are_those_of_the_metrics() -> None:
    callback = PerceptualCallback()
    module = cast(pl.LightningModule, SimpleNamespace(device=torch.device("cpu")))
    trainer: Any = SimpleNamespace(callbacks=[callback])
    callback.on_test_epoch_start(trainer, module)
    network = callback.network
    distance = PerceptualDistance(lambda face: network.embed_with_features(face)[1])
    frechet, kernel = FrechetDistance(network, network.embedding_dim), KernelDistance(network)
    for number, (outputs, batch) in enumerate(batches()):
        real_occluders = {"face": batch["face"]}
        callback.on_test_batch_end(trainer, module, {}, real_occluders, number, 0)
        callback.on_test_batch_end(trainer, module, outputs, batch, number, 1)
        distance.update(outputs["completed_face"], batch["face"], batch["mask"], batch["kind"])
        for metric in (frechet, kernel):
            metric.update(outputs["completed_face"], batch["face"])
    callback.on_test_epoch_end(trainer, module)
    crowds = {"frechet": float(frechet.compute()), "kernel": float(kernel.compute())}
    expected = {**distance.compute()["mean"], **crowds}
    assert callback.scores == {"given_mask": pytest.approx(expected, rel=1e-5)}
    assert expected["perceptual_covered"] > expected["perceptual"] > 0


def test_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vgg.*dlib_resnet"):
        PerceptualCallback("vgg")
