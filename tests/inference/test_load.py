import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import deocc
from deocc import runs
from deocc.commands.model import model_hash
from deocc.evaluation.thresholds import covered_share
from deocc.modules import DistillationModule
from tests.random_model import DLIB_STUDENT


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def checkpoint_of(run: Path) -> Path:
    return run / runs.CHECKPOINTS / "last.ckpt"


@pytest.fixture
def folder(tested: Path, tmp_path: Path) -> Path:
    """A copy of the model folder."""
    return Path(shutil.copytree(tested / "model", tmp_path / "model"))


def test_load_equals_the_trained_module(tested: Path, masked_faces: torch.Tensor) -> None:
    module = DistillationModule.load_from_checkpoint(checkpoint_of(tested), map_location="cpu").eval()
    pipeline = deocc.load(checkpoint_of(tested))
    with torch.no_grad():
        predicted = module.predict_step({"masked_face": masked_faces}, 0)  # type: ignore[typeddict-item]
    found = pipeline.process_faces(masked_faces)
    assert 0 < float(found.mask.mean()) < 1
    for name in ("mask", "completed_face", "embedding"):
        assert (predicted[name] - getattr(found, name)).abs().max() <= 1e-6  # type: ignore[literal-required]
    assert torch.equal(found.covered, covered_share(found.mask))
    given = torch.zeros_like(found.mask)
    given[:, :, 32:] = 1
    with torch.no_grad():
        assert torch.allclose(pipeline.embed_faces(masked_faces), module(masked_faces), atol=1e-6, rtol=0)
        embedding = pipeline.process_faces(masked_faces, given).embedding
        assert torch.allclose(embedding, module(masked_faces, given), atol=1e-6, rtol=0)
    assert pipeline.size == 64
    assert pipeline.device.type == "cpu"
    assert pipeline.thresholds is not None


@pytest.mark.parametrize("where", ["model", "."])
def test_load_of_model_and_run_folder(tested: Path, masked_faces: torch.Tensor, where: str) -> None:
    exact, stored = deocc.load(checkpoint_of(tested)), deocc.load(tested / where)
    assert stored.thresholds == exact.thresholds
    assert stored.size == exact.size
    assert model_hash(stored) == model_hash(exact)
    given = (masked_faces.mean(1, keepdim=True) > 0).float()  # pixels of a predicted mask may change sides
    expected, found = (pipeline.process_faces(masked_faces, given) for pipeline in (exact, stored))
    assert float((expected.embedding * found.embedding).sum(1).min()) > 0.9999
    assert float((expected.completed_face - found.completed_face).abs().max()) < 0.02
    masks = [pipeline.process_faces(masked_faces).mask for pipeline in (exact, stored)]
    assert float((masks[0] - masks[1]).abs().mean()) < 0.01


def test_load_of_another_student(masked_faces: torch.Tensor, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "student": "timm/resnet18",
        "student_input": "masked",
        "mask_channel": True,
        "student_options": {"size": 64},
    }
    module = DistillationModule(**settings).eval()
    content: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="never tested"):
        pipeline = deocc.load(tmp_path / "a.ckpt")
    pipeline.size = 64
    mask = (masked_faces.mean(1, keepdim=True) > 0).float()
    with torch.no_grad():
        expected = module(masked_faces, mask)
    assert pipeline.network.deoccluder is None
    assert pipeline.thresholds is None
    assert torch.allclose(pipeline.process_faces(masked_faces, mask).embedding, expected, atol=1e-6, rtol=0)


def test_load_of_a_path_is_offline(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_args, **_named: pytest.fail("opened a socket"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_named: pytest.fail("asked the hub"))
    monkeypatch.chdir(tested.parent)
    deocc.load(f"{tested.name}/model")
    for name in ("distill/modle", "~no-such-user/model"):
        with pytest.raises(FileNotFoundError, match=f"no model at {name}: give a model folder"):
            deocc.load(name)


def test_load_fetches_three_files_from_the_hub(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, files=allow_patterns)
        return str(tested / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert deocc.load("somebody/masked-faces").size == 64
    assert asked["repository"] == "somebody/masked-faces"
    assert asked["files"] == ["config.json", "model.safetensors", "README.md"]


def test_load_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_args: Any, **_named: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError, match=r"no folder a/b here.*\(no route to host\)"):
        deocc.load("a/b")


def test_load_ignores_an_outdated_model_folder(tested: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tested, tmp_path / "run"))
    content = torch.load(checkpoint_of(run), weights_only=True)
    content["state_dict"]["center"] += 1
    torch.save(content, checkpoint_of(run))
    os.utime(checkpoint_of(run), (2**31, 2**31))
    with pytest.warns(UserWarning, match=r"last\.thresholds\.json is not used"):
        pipeline = deocc.load(run)
    assert torch.equal(pipeline.network.center, content["state_dict"]["center"])
    assert pipeline.thresholds is None
    assert pipeline.size == 64


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_load_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in the model folder"):
        deocc.load(folder)


def test_load_executes_no_pickle(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = pickle.dumps(Malicious(mark), protocol=2)
    (folder / "model.safetensors").write_bytes(attack)
    with pytest.raises(ValueError, match="is no safetensors file"):
        deocc.load(folder)
    (tmp_path / "a.ckpt").write_bytes(attack)
    torch.save({"state_dict": Malicious(mark), "hyper_parameters": {}}, tmp_path / "b.ckpt")
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            deocc.load(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"\x80\x04", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ({"format_version": 1}, "has format version 1, this deocc reads 3"),
        ({"format": "other"}, "describes no deocc model"),
        ({"weights_sha256": "0"}, "does not belong to its config.json"),
        ({"student": {"name": "dlib_resnet"}}, "cannot be rebuilt"),
        ({"student": None}, "cannot be rebuilt"),
        ({"student": {**DLIB_STUDENT, "options": {"weights": "timm"}}}, "unknown recogniser option 'weights'"),
        ({"deoccluder": {"generator": {"width": 12}, "segmenter": {"width": 8}}}, "cannot be rebuilt"),
        ({"thresholds": {"clean-clean": 1}}, "is damaged .*thresholds"),
        ({"face": {}}, "is damaged"),
    ],
)
def test_load_of_a_bad_config(folder: Path, values: dict[str, Any] | bytes, message: str) -> None:
    path = folder / "config.json"
    content = values if isinstance(values, bytes) else json.dumps({**json.loads(path.read_text()), **values}).encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        deocc.load(folder)


def test_load_of_an_incomplete_checkpoint(tested: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint_of(tested), weights_only=True)
    del content["state_dict"]["center"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="lacks 'center'"):
        deocc.load(tmp_path / "a.ckpt")


def test_load_of_stage_1_and_empty_folder(stage1: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 'inpainting'.*give a stage-2 run"):
        deocc.load(stage1)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        deocc.load(tmp_path)


def test_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="lod"):
        _ = deocc.lod


def test_load_leaves_the_compiler_alone(tested: Path) -> None:
    lines = [
        "import sys, deocc",
        f"deocc.load({str(tested / 'model')!r})",
        "print(sorted({'torch._dynamo', 'torchvision', 'scipy', 'pytorch_lightning'} & set(sys.modules)))",
    ]
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
