"""When a test calibrates, and what it does where it cannot. The thresholds themselves: tests/apps/pipeline."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deocc.callbacks import calibration
from deocc.callbacks.calibration import CalibrationCallback, checkpoint_of_own_test, put_into_checkpoint
from deocc.data import OrlFaces
from deocc.evaluation import EmbeddingSet


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": {}, "thresholds": "old"}, path)
    return path


def trainer(checkpoint: Path | None, root: Path, **changes: Any) -> Any:
    ckpt_path = None if checkpoint is None else str(checkpoint)
    data = SimpleNamespace(face_set=OrlFaces.__new__(OrlFaces))
    return SimpleNamespace(**{"datamodule": data, "ckpt_path": ckpt_path, "default_root_dir": str(root), "is_global_zero": True, **changes})


def test_only_a_test_on_the_runs_own_faces_in_or_around_its_folder_belongs_to_it(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for own in ("data: {}", "data: {face_set: deocc.data.OrlFaces}"):
        (run / "config.yaml").write_text(own)
        assert [checkpoint_of_own_test(trainer(checkpoint, root)) for root in (run, tmp_path)] == [checkpoint] * 2
    others = [
        trainer(checkpoint, run / "test-lfw"),
        trainer(checkpoint, tmp_path / "elsewhere"),
        trainer(None, run),
        trainer(checkpoint, run, fast_dev_run=1),
    ]
    assert [checkpoint_of_own_test(other) for other in others] == [None] * 4
    (run / "config.yaml").write_text("data: {face_set: {class_path: deocc.data.LfwFaces, init_args: {}}}")
    assert checkpoint_of_own_test(trainer(checkpoint, run)) is None


def test_an_entry_replaces_an_earlier_one_and_nothing_else(checkpoint: Path) -> None:
    before = checkpoint.stat()
    put_into_checkpoint(checkpoint, "thresholds", {"a": 1.5})
    content = torch.load(checkpoint, weights_only=True)
    assert content["thresholds"] == {"a": 1.5} and torch.equal(content["state_dict"]["weight"], torch.ones(2))
    assert (checkpoint.stat().st_mtime_ns, checkpoint.stat().st_mode) == (before.st_mtime_ns, before.st_mode)


def test_an_interrupted_write_leaves_the_checkpoint_as_it_was(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail] . unexpected pos 64 vs 0")

    monkeypatch.setattr(calibration.torch, "save", full)
    with pytest.raises(OSError, match="unexpected pos"):
        put_into_checkpoint(checkpoint, "thresholds", {})
    assert checkpoint.read_bytes() == before and [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


class _Data:
    """A data module of so many images a loader, whose faces are their own embeddings."""

    size = 64
    protocol = None

    def __init__(self, images: int) -> None:
        self.face_set = SimpleNamespace(fingerprint=lambda split: f"hash of {split}")
        self._images = images

    def val_dataloader(self) -> list[Any]:
        return [_Loader(self._images, -1), _Loader(self._images, 0)]

    def test_dataloader(self) -> list[Any]:
        return [_Loader(4, -1), _Loader(4, 0)]

    def on_after_batch_transfer(self, batch: Any, number: int) -> Any:
        return batch


class _Loader:
    """Two people, of the same images in turn."""

    def __init__(self, images: int, kind: int) -> None:
        self.dataset = range(images)
        self._kind = kind

    def __iter__(self) -> Any:
        count = len(self.dataset)
        index = torch.arange(count)
        ids = {"identity": index % 2, "index": index, "kind": torch.full((count,), self._kind), "seed": index * 0}
        yield {**ids, "embedding": torch.eye(2)[index % 2], "mask": torch.full((count, 1, 64, 64), 1.0 + min(self._kind, 0))}


class _Module:
    device = torch.device("cpu")

    def __init__(self) -> None:
        index = torch.arange(4)
        self.embeddings = {"student": EmbeddingSet(torch.eye(2)[index % 2], index % 2, index, index * 0, index * 0)}

    def transfer_batch_to_device(self, batch: Any, device: Any, number: int) -> Any:
        return batch

    def predict_step(self, batch: Any, number: int) -> Any:
        return batch


def calibrated(checkpoint: Path, images: int, **changes: Any) -> Any:
    root = checkpoint.parents[1]
    running, callback = trainer(checkpoint, root, datamodule=_Data(images), **changes), CalibrationCallback()
    callback.on_test_epoch_end(running, _Module())  # type: ignore[arg-type]
    callback.on_test_end(running, _Module())  # type: ignore[arg-type]
    return torch.load(checkpoint, weights_only=True)["thresholds"]


def test_people_who_are_told_apart_give_thresholds_that_do(checkpoint: Path) -> None:
    kept = calibrated(checkpoint, 48)
    row = kept["thresholds"]["clean-clean"]
    assert [entry["target"] for entry in row] == [0.1, 0.01] and all(entry["same"] == entry["different"] == 1 for entry in row)
    assert row[0]["validation"] == row[1]["validation"]
    assert row[0]["validation"]["genuine"] == 2 * 24 * 23 // 2 and row[0]["validation"]["impostor"] == 576
    assert kept["masked"] == {"limit": 0.5, "clean_called_masked": 0.0, "masked_called_clean": 0.0} and kept["least_visible"] == 0
    assert (kept["size"], kept["data"], kept["data_hash"]) == (64, "SimpleNamespace", "hash of val")


def test_the_other_processes_write_nothing(checkpoint: Path) -> None:
    assert calibrated(checkpoint, 40, is_global_zero=False) == "old"


def test_a_set_without_validation_people_is_told_and_nothing_is_written(checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match="has no validation faces"):
        assert calibrated(checkpoint, 1) == "old"


def test_a_checkpoint_that_cannot_be_written_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(calibration, "put_into_checkpoint", refused)
    with pytest.warns(UserWarning, match=r"cannot keep the thresholds in .*\(Permission denied\)"):
        calibrated(checkpoint, 40)


def test_a_student_that_predicts_no_masks_gets_no_thresholds_and_the_test_goes_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(self: _Module, batch: Any, number: int) -> Any:
        return {**batch, "mask": torch.zeros_like(batch["mask"])}

    monkeypatch.setattr(_Module, "predict_step", bare)
    with pytest.warns(UserWarning, match=r"^no thresholds: "):
        assert calibrated(checkpoint, 48) == "old"
