"""A test of a run on its own data writes thresholds beside the checkpoint, which it does not change."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deocc.callbacks.calibration import CalibrationCallback, _conditions, checkpoint_of_own_test
from deocc.data import OrlFaces
from deocc.evaluation.bootstrap import Bounds
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import ListedPairs
from deocc.evaluation.results import Results
from deocc.evaluation.thresholds import (
    CONDITIONS,
    Calibration,
    Rates,
    Separation,
    Threshold,
    read_thresholds,
    thresholds_path,
    write_thresholds,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": {}}, path)
    return path


def trainer(checkpoint: Path | None, root: Path, **changes: Any) -> Any:
    ckpt_path = None if checkpoint is None else str(checkpoint)
    data = SimpleNamespace(face_set=OrlFaces.__new__(OrlFaces))
    return SimpleNamespace(
        **{"datamodule": data, "ckpt_path": ckpt_path, "default_root_dir": str(root), "is_global_zero": True, **changes}
    )


def test_own_test_is_recognised(checkpoint: Path, tmp_path: Path) -> None:
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


def small_calibration(limit: float = 0.5) -> Calibration:
    rows: dict[str, tuple[Threshold, ...]] = {
        name: (Threshold(0.01, limit, 0.25, Rates(0.01, 0.1, 0.05, 100, 500, 9, Bounds(0.0, 0.1), 31.5)),)
        for name in CONDITIONS
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.2, 64, "Faces", "0")


def test_thresholds_are_written_and_read(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    assert read_thresholds(checkpoint) is None
    write_thresholds(checkpoint, small_calibration())
    assert read_thresholds(checkpoint) == small_calibration()
    assert checkpoint.read_bytes() == before
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["last.ckpt", "last.thresholds.json"]
    write_thresholds(checkpoint, small_calibration(0.6))
    assert read_thresholds(checkpoint) == small_calibration(0.6)


def test_changed_checkpoint_has_no_thresholds(checkpoint: Path) -> None:
    write_thresholds(checkpoint, small_calibration())
    checkpoint.write_bytes(checkpoint.read_bytes() + b"more")
    with pytest.warns(UserWarning, match=r"last\.thresholds\.json is not used: last\.ckpt has changed since"):
        assert read_thresholds(checkpoint) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checkpoint_sha256": "0", "thresholds": {}}', "[" * 100_000])
def test_damaged_thresholds_are_refused(checkpoint: Path, content: str) -> None:
    thresholds_path(checkpoint).write_text(content)
    with pytest.raises(ValueError, match=r"last\.thresholds\.json is damaged .*deocc test") as error:
        read_thresholds(checkpoint)
    assert "\n" not in str(error.value)


def test_interrupted_write_keeps_thresholds(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_thresholds(checkpoint, small_calibration())

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_thresholds(checkpoint, small_calibration(0.6))
    assert read_thresholds(checkpoint) == small_calibration()
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["last.ckpt", "last.thresholds.json"]


class _Data:
    """A data module whose batches contain their embeddings and predicted masks."""

    size = 64
    protocol = ListedPairs(*(np.array([value]) for value in (0, 2, True, 0)))

    def __init__(self, images: int) -> None:
        self.face_set = SimpleNamespace(fingerprint=lambda split: f"hash of {split}")
        self._images = images

    def val_dataloader(self) -> list[Any]:
        return [_Loader(self._images, -1), _Loader(self._images, 0)]

    def on_after_batch_transfer(self, batch: Any, number: int) -> Any:
        return batch


class _Loader:
    """Alternating images of two identities."""

    def __init__(self, images: int, kind: int) -> None:
        self.dataset = range(images)
        self._kind = kind

    def __iter__(self) -> Any:
        count = len(self.dataset)
        index = torch.arange(count)
        ids = {"identity": index % 2, "index": index, "kind": torch.full((count,), self._kind), "seed": index * 0}
        yield {
            **ids,
            "embedding": torch.eye(2)[index % 2],
            "mask": torch.full((count, 1, 64, 64), 1.0 + min(self._kind, 0)),
        }


class _Module:
    device = torch.device("cpu")

    def __init__(self, test_images: int) -> None:
        index = torch.arange(test_images)
        ids = {"identity": index % 2, "index": index, "seed": index * 0}
        rows = {
            name: EmbeddingSet(torch.eye(2)[index % 2], kind=torch.full_like(index, kind), **ids)
            for name, kind in (("student_clean", -1), ("student", 0))
        }
        self.results = Results({}, embeddings=rows)

    def transfer_batch_to_device(self, batch: Any, device: Any, number: int) -> Any:
        return batch

    def predict_step(self, batch: Any, number: int) -> Any:
        return batch


def calibrated(checkpoint: Path, images: int, test_images: int = 4, **changes: Any) -> Calibration | None:
    """Return what the callback writes beside a checkpoint, which must not change."""
    root, before = checkpoint.parents[1], (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns)
    module, callback = _Module(test_images), CalibrationCallback()
    running = trainer(checkpoint, root, datamodule=_Data(images), **changes)
    callback.on_test_epoch_end(running, module)  # type: ignore[arg-type]
    for_results = callback.calibration(running, module)  # type: ignore[arg-type]
    callback.on_test_end(running, module)  # type: ignore[arg-type]
    assert (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns) == before
    assert read_thresholds(checkpoint) == for_results
    return for_results


def test_conditions_have_all_pairs() -> None:
    index = torch.arange(10)
    gallery, probe = (
        EmbeddingSet(torch.eye(10).repeat(n, 1), index.repeat(n) // 2, index.repeat(n), kind, torch.arange(10 * n))
        for n, kind in ((1, torch.full((10,), -1)), (6, torch.arange(2).repeat_interleave(30)))
    )
    found = {name: (len(counted.pairs.same), counted.repeats) for name, counted in _conditions(gallery, probe).items()}
    assert found == {"clean-clean": (45, 1), "clean-masked": (90 * 6, 6), "masked-masked": (45 * 12, 12)}
    assert tuple(found) == CONDITIONS


def test_separable_identities_give_thresholds(checkpoint: Path) -> None:
    found = calibrated(checkpoint, 48)
    assert found is not None
    row = found.thresholds["clean-clean"]
    assert [entry.target for entry in row] == [0.1, 0.01] and all(entry.same == entry.different == 1 for entry in row)
    assert row[0].validation == row[1].validation
    assert row[0].validation.genuine == 2 * 24 * 23 // 2 and row[0].validation.impostor == 576
    assert found.masked == (0.5, 0.0, 0.0) and found.least_visible == 0
    assert (found.size, found.data, found.data_hash) == (64, "SimpleNamespace", "hash of val")


def test_thresholds_are_measured_on_all_pairs(checkpoint: Path) -> None:
    found = calibrated(checkpoint, 48, test_images=6)  # three images of each of two people; the list names one pair
    assert found is not None
    measured = {name: row[0].test for name, row in found.thresholds.items()}
    counts = {name: rates and (rates.genuine, rates.impostor, rates.people) for name, rates in measured.items()}
    assert counts == {"clean-clean": (6, 9, 2), "clean-masked": (12, 18, 2), "masked-masked": (6, 9, 2)}
    assert all(rates and rates.false_accept_rate == 0 and rates.interval for rates in measured.values())


def test_other_ranks_write_nothing(checkpoint: Path) -> None:
    assert calibrated(checkpoint, 40, is_global_zero=False) is None


def test_no_validation_faces_no_thresholds(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert calibrated(checkpoint, 1) is None
    assert "has no validation faces" in caplog.text


def test_unwritable_thresholds_are_reported(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deocc.evaluation.thresholds.write_thresholds", refused)
    running = trainer(checkpoint, checkpoint.parents[1], datamodule=_Data(48))
    callback, module = CalibrationCallback(), _Module(4)
    callback.on_test_epoch_end(running, module)  # type: ignore[arg-type]
    callback.on_test_end(running, module)  # type: ignore[arg-type]
    assert "last.thresholds.json (Permission denied)" in caplog.text


def test_no_predicted_masks_no_thresholds(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bare(self: _Module, batch: Any, number: int) -> Any:
        return {**batch, "mask": torch.zeros_like(batch["mask"])}

    monkeypatch.setattr(_Module, "predict_step", bare)
    assert calibrated(checkpoint, 48) is None
    assert caplog.messages[0].startswith("no thresholds: ")
