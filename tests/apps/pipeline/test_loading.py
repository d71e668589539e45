"""What `deocc.load` takes, that it gives the trained module's own answers, and the one line for what it does not take."""

import json
import os
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import deocc
from deocc import runs
from deocc.commands.arguments import model_hash
from deocc.inference.network import FaceOutput
from deocc.modules import DistillationModule


class _Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def checkpoint_of(run: Path) -> Path:
    return run / runs.CHECKPOINTS / "last.ckpt"


def copied(tested: Path, folder: Path) -> Path:
    return Path(shutil.copytree(tested / "model", folder))


def output_of(module: DistillationModule, face: torch.Tensor) -> FaceOutput:
    with torch.no_grad():
        predicted = module.predict_step({"masked_face": face}, 0)  # type: ignore[typeddict-item]
    return FaceOutput(predicted["mask"], predicted["completed_face"], predicted["embedding"])


def test_a_pipeline_gives_what_the_trained_module_gives(tested: Path, masked_faces: torch.Tensor) -> None:
    module = DistillationModule.load_from_checkpoint(checkpoint_of(tested), map_location="cpu").eval()
    pipeline = deocc.load(checkpoint_of(tested))
    expected, found = output_of(module, masked_faces), pipeline.process_faces(masked_faces)
    assert 0 < float(found.mask.mean()) < 1
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-6
    with torch.no_grad():
        assert torch.allclose(pipeline.embed_faces(masked_faces), module(masked_faces), atol=1e-6, rtol=0)
        given = torch.zeros_like(found.mask)
        given[:, :, 32:] = 1
        assert torch.allclose(
            pipeline.process_faces(masked_faces, given).embedding, module(masked_faces, given), atol=1e-6, rtol=0
        )
    assert pipeline.size == 64 and pipeline.device.type == "cpu" and pipeline.thresholds is not None


@pytest.mark.parametrize("where", ["model", "."])
def test_a_model_folder_gives_what_the_checkpoint_gives_to_half_precision(
    tested: Path, masked_faces: torch.Tensor, where: str
) -> None:
    exact, stored = deocc.load(checkpoint_of(tested)), deocc.load(tested / where)
    assert stored.thresholds == exact.thresholds and stored.size == exact.size
    assert model_hash(stored) == model_hash(exact)
    given = (masked_faces.mean(1, keepdim=True) > 0).float()  # pixels of a predicted mask may change sides
    expected, found = (pipeline.process_faces(masked_faces, given) for pipeline in (exact, stored))
    assert float((expected.embedding * found.embedding).sum(1).min()) > 0.9999
    assert float((expected.completed_face - found.completed_face).abs().max()) < 0.02
    assert float((exact.process_faces(masked_faces).mask - stored.process_faces(masked_faces).mask).abs().mean()) < 0.01


def test_a_students_further_channels_and_projection_are_rebuilt(masked_faces: torch.Tensor, tmp_path: Path) -> None:
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
    assert pipeline.network.deoccluder is None and pipeline.thresholds is None
    assert torch.allclose(pipeline.process_faces(masked_faces, mask).embedding, expected, atol=1e-6, rtol=0)


def test_a_path_needs_no_network(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_args, **_named: pytest.fail("opened a socket"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_named: pytest.fail("asked the hub"))
    monkeypatch.chdir(tested.parent)
    deocc.load(f"{tested.name}/model")
    with pytest.raises(FileNotFoundError, match="no model at distill/modle: give a model folder"):
        deocc.load(f"{tested.name}/modle")


def test_a_repository_on_the_hub_is_fetched_by_its_three_files(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, allow_patterns=allow_patterns)
        return str(tested / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert deocc.load("somebody/masked-faces").size == 64
    assert asked == {
        "repository": "somebody/masked-faces",
        "allow_patterns": ["config.json", "model.safetensors", "README.md"],
    }


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_args: Any, **_named: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError, match=r"no folder a/b here.*\(no route to host\)"):
        deocc.load("a/b")


def test_a_run_that_was_trained_on_since_its_test_is_not_answered_from_the_old_model(
    tested: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tested, tmp_path / "run"))
    content = torch.load(checkpoint_of(run), weights_only=True)
    content["state_dict"]["center"] += 1
    torch.save(content, checkpoint_of(run))
    os.utime(checkpoint_of(run), (2**31, 2**31))
    with pytest.warns(UserWarning, match=r"last\.thresholds\.json is not used"):
        pipeline = deocc.load(run)
    assert torch.equal(pipeline.network.center, content["state_dict"]["center"]) and pipeline.thresholds is None
    assert pipeline.size == 64


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tested: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tested, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in the model folder"):
        deocc.load(folder)


def test_a_pickle_dressed_as_weights_or_as_a_checkpoint_is_refused_and_not_run(tested: Path, tmp_path: Path) -> None:
    folder, mark = copied(tested, tmp_path / "model"), tmp_path / "mark"
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Malicious(mark), protocol=2))
    with pytest.raises(ValueError, match="is no safetensors file"):
        deocc.load(folder)
    for name, write in {
        "a.ckpt": lambda path: path.write_bytes(pickle.dumps(_Malicious(mark), protocol=2)),
        "b.ckpt": lambda path: _save(path, mark),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            deocc.load(tmp_path / name)
    assert not mark.exists()


def _save(path: Path, mark: Path) -> None:
    torch.save({"state_dict": _Malicious(mark), "hyper_parameters": {}}, path)


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 2}, "has format version 2, this deocc reads 1"),
        ({"format": "other"}, "describes no deocc model"),
        ({"weights_sha256": "0"}, "does not belong to its config.json"),
        ({"student": {"name": "dlib_resnet"}}, "cannot be rebuilt"),
        ({"student": None}, "cannot be rebuilt"),
        ({"deoccluder": {"generator": {"width": 12}, "segmenter": {"width": 8}}}, "cannot be rebuilt"),
        ({"thresholds": {"clean-clean": 1}}, "is damaged .*thresholds"),
        ({"face": {}}, "is damaged"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    tested: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = copied(tested, tmp_path / "model")
    _change(folder, **values)
    with pytest.raises(ValueError, match=message):
        deocc.load(folder)


def test_a_configuration_cannot_name_a_file_or_a_download(tested: Path, tmp_path: Path) -> None:
    folder = copied(tested, tmp_path / "model")
    student = json.loads((folder / "config.json").read_text())["student"]
    _change(folder, student={**student, "options": {"weights": "timm"}})
    with pytest.raises(ValueError, match="unknown recogniser option 'weights'"):
        deocc.load(folder)


def test_what_is_no_json_is_refused(tested: Path, tmp_path: Path) -> None:
    folder = copied(tested, tmp_path / "model")
    (folder / "config.json").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="is not JSON"):
        deocc.load(folder)


def test_weights_that_lack_a_name_are_refused(tested: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint_of(tested), weights_only=True)
    del content["state_dict"]["center"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="lacks 'center'"):
        deocc.load(tmp_path / "a.ckpt")


def test_a_stage_1_run_and_an_empty_folder_are_refused(stage1: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 'inpainting'.*give a stage-2 run"):
        deocc.load(stage1)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        deocc.load(tmp_path)


def test_the_package_has_nothing_else_to_load() -> None:
    with pytest.raises(AttributeError, match="lod"):
        _ = deocc.lod
