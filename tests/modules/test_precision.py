"""bfloat16 of frozen networks: where it is used, how close the embeddings stay, and what stays in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from deocc.modules import DistillationModule, precision
from deocc.networks import create_embedder
from tests.modules.training import OrlSubset, faces, fit_orl, stage1_checkpoint, trainer_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: True)
    monkeypatch.setenv("DEOCC_BFLOAT16", "1")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> DistillationModule:
    folder = tmp_path_factory.mktemp("stage1")
    module = DistillationModule(stage1_checkpoint(folder), student_input="both", predicted_mask_share=0.5)
    fit_orl(module, folder)
    return module


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16", "amx_bf16"])
def test_instructions(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(f"model name : a\nflags\t\t: sse {flags} fma\n")
    assert precision.has_bfloat16_instructions(tmp_path / "cpuinfo") is (flags != "avx2")
    assert not precision.has_bfloat16_instructions(tmp_path / "nowhere")


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.uses_bfloat16(CPU, "dlib_resnet", "sface")
    assert not precision.uses_bfloat16(CPU, "dlib_resnet", "iresnet50")
    assert not precision.uses_bfloat16(torch.device("cuda"), "dlib_resnet")
    monkeypatch.setenv("DEOCC_BFLOAT16", "0")
    assert not precision.uses_bfloat16(CPU, "dlib_resnet")
    monkeypatch.setenv("DEOCC_BFLOAT16", "1")
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: False)
    assert not precision.uses_bfloat16(CPU, "dlib_resnet")


@torch.no_grad()
def embedded(module: DistillationModule, data: OrlSubset) -> dict[str, torch.Tensor]:
    for number, loader in enumerate(data.test_dataloader()):
        for batch in list(loader)[:3]:
            module.test_step(data.on_after_batch_transfer(batch, 0), 0, number)
    return {name: rows.embedding for name, rows in module.comparison.collect()[0].items()}


def test_embeddings_close(module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = OrlSubset()
    module.trainer = trainer_for(tmp_path)
    data.trainer = module.trainer
    data.setup("test")
    low = embedded(module, data)
    monkeypatch.setenv("DEOCC_BFLOAT16", "0")
    full = embedded(module, data)
    for name in ("teacher_clean", "teacher_masked", "teacher_completed", "student_clean", "student"):
        assert not torch.equal(low[name], full[name])
        assert low[name].dtype == torch.float32
        assert cosine_similarity(low[name], full[name]).min() > 0.9995


def test_results_name_it(module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, name in (("1", "bfloat16"), ("0", "float32")):
        monkeypatch.setenv("DEOCC_BFLOAT16", setting)
        trainer_for(tmp_path, limit_test_batches=3).test(module, OrlSubset(), verbose=False)
        assert module.results.content["frozen_precision"] == name


@torch.no_grad()
def test_predictions_stay_float32(module: DistillationModule, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for setting in ("1", "0"):
        monkeypatch.setenv("DEOCC_BFLOAT16", setting)
        outputs.append({**module.predict_step(faces(), 0), "called": module(faces()["masked_face"])})
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_training_step(module: DistillationModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def terms(student: torch.Tensor, teacher: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        seen.append((student, teacher, completed[-1]))
        return {"pair": student.sum()}

    completed: list[torch.Tensor] = []
    module.deoccluder.register_forward_hook(lambda *parts: completed.append(parts[-1]))  # type: ignore[union-attr]
    monkeypatch.setattr(module, "_terms", terms)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    module.training_step(faces(8), 0)
    monkeypatch.setenv("DEOCC_BFLOAT16", "0")
    module.training_step(faces(8), 0)
    for low, full in zip(*seen, strict=True):
        assert low.dtype == torch.float32
        assert not torch.equal(low, full)
    assert cosine_similarity(seen[0][1], seen[1][1]).min() > 0.9995
    assert (seen[0][2] - seen[1][2]).abs().mean() < 5e-3


@pytest.mark.parametrize("name", precision._EXACT_EMBEDDERS)
@torch.no_grad()
def test_listed_embedders_are_close(name: str) -> None:
    try:
        embedder = create_embedder(name).freeze()
    except ImportError as error:
        pytest.skip(str(error))
    data = OrlSubset()
    data.setup("test")
    face = torch.cat([batch["face"] for batch in data.test_dataloader()[0]])
    full = embedder(face)
    with precision.frozen_precision(CPU, name):
        low = embedder(face)
    assert not torch.equal(low, full)
    assert cosine_similarity(low - full.mean(0), full - full.mean(0)).min() > 0.9995
