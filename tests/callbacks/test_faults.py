"""Steps that are not finite stop the training or change nothing; unreadable images are reported."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from deocc.callbacks import FiniteCallback, QuarantineCallback
from deocc.callbacks.faults import FOLDER, QUARANTINE
from deocc.data import FolderFaces, MaskedFaceDataModule
from deocc.data import loader as loading
from deocc.data.loader import Quarantine
from tests.callbacks.small_training import QUIET, Small, fit
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.data.conftest import TinyFaces
from tests.data.test_quarantine import Batch, data, draw, spoil

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
NO_CHECKPOINTS: dict[str, Any] = {"enable_checkpointing": False}


def infinite(loss: Tensor) -> Tensor:
    return loss * torch.inf


def steep(loss: Tensor) -> Tensor:
    """A finite loss with an infinite gradient: the slope of the root at 0."""
    return (0 * loss).sqrt() + 1


def faulty(change: Callable[[Tensor], Tensor] = infinite, accumulated: int = 1) -> Small:
    """Change the loss of the first batch of the second step."""
    return Small(lambda loss, batch: change(loss) if batch == accumulated else loss)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("change", [infinite, steep])
def test_training_stops_and_describes_batches(change: Any, accumulated: int, tmp_path: Path) -> None:
    module, settings = faulty(change, accumulated), {"accumulate_grad_batches": accumulated, **NO_CHECKPOINTS}
    with pytest.raises(ValueError, match=r"not finite at step 1 \(square .*\).*--non_finite.action skip"):
        fit(module, tmp_path, FiniteCallback(), **settings)
    (file,) = (tmp_path / FOLDER).iterdir()
    content = json.loads(file.read_text())
    assert content["index"] == content["seed"] == list(range(4 * accumulated, 8 * accumulated))
    assert content["step"] == 1 and (content["terms"]["square"] == "inf") == (change == infinite)
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("change", [infinite, steep])
def test_skipped_step_changes_nothing(change: Any, accumulated: int, tmp_path: Path) -> None:
    module, callback = faulty(change, accumulated), FiniteCallback("skip")
    steps, settings = 4 * accumulated, {"accumulate_grad_batches": accumulated, **NO_CHECKPOINTS}
    fit(module, tmp_path, callback, steps=steps, **settings)
    assert callback.skipped == 1 and len(module.seen) == steps
    before, after, later = module.seen[accumulated::accumulated]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["layer.weight"], later["layer.weight"])
    assert not torch.equal(after["norm.running_mean"], later["norm.running_mean"])
    assert later["norm.num_batches_tracked"] == 2 * accumulated


@pytest.mark.parametrize("accumulated", [1, 2])
def test_twenty_skipped_steps_stop_training(accumulated: int, tmp_path: Path) -> None:
    module = Small(lambda loss, batch: loss * torch.nan if batch // accumulated != 3 else loss)
    settings = {"accumulate_grad_batches": accumulated, **NO_CHECKPOINTS}
    with pytest.raises(ValueError, match="not finite at step 24"):
        fit(module, tmp_path, FiniteCallback("skip"), steps=30 * accumulated, **settings)


def test_overflow_is_left_to_the_scaler(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(Small(), tmp_path, FiniteCallback(), plugins=[precision], **NO_CHECKPOINTS)
    assert scaler.get_scale() < 2.0**100 and not (tmp_path / FOLDER).exists()


def test_unwritable_folder_does_not_hide_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(ValueError, match="not finite at step 1"):
        fit(faulty(), tmp_path, FiniteCallback(), **NO_CHECKPOINTS)
    assert f"cannot write {tmp_path / FOLDER}" in caplog.text


def test_unknown_action_is_refused() -> None:
    with pytest.raises(ValueError, match="'ignore': choose stop or skip"):
        FiniteCallback("ignore")  # type: ignore[arg-type]


@pytest.fixture
def faces(tmp_path: Path) -> FolderFaces:
    return FolderFaces(str(draw(tmp_path / "faces")), aligned="canonical", seed=1)


class Trained(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_faces(folder: Path, module: MaskedFaceDataModule, epochs: int = 2) -> list[dict[str, str]]:
    """Train with the callback and return the rows of `metrics.csv` about unreadable images."""
    settings: dict[str, Any] = {"limit_val_batches": 0, "use_distributed_sampler": False, **NO_CHECKPOINTS}
    settings |= {"logger": CSVLogger(folder, name="", version=""), "callbacks": [QuarantineCallback()]}
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, **settings, **QUIET)
    trainer.fit(Trained(), datamodule=module)
    metrics = folder / "metrics.csv"
    rows = csv.DictReader(io.StringIO(metrics.read_text() if metrics.is_file() else ""))
    return [row for row in rows if row.get("train/quarantined")]


def read_table(run: Path) -> list[list[str]]:
    with (run / QUARANTINE).open(newline="") as file:
        return list(csv.reader(file))


def test_unreadable_images_are_reported(faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad, run = spoil(faces, "train"), tmp_path / "run"
    rows = fit_faces(run, data(faces))
    assert [float(row["train/quarantined"]) for row in rows] == [1.0]  # when it is found
    header, row = read_table(run)
    assert header == ["name", "reason"] and row[0] == faces.names[bad] and "truncated" in row[1]
    line = f"deocc fit: 1 of 104 images could not be read and were left out: {run / QUARANTINE}\n"
    assert line in capfd.readouterr().out


def test_readable_images_are_not_reported(
    faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit_faces(tmp_path / "run", data(faces), epochs=1) == []
    assert not (tmp_path / "run" / QUARANTINE).exists()
    assert "could not be read" not in capfd.readouterr().out


def test_too_many_images_are_written_down(faces: FolderFaces, tmp_path: Path) -> None:
    bad = {faces.names[spoil(faces, "train", number=number)] for number in range(0, 60, 20)}
    with pytest.raises(ValueError, match="images cannot be read"):
        fit_faces(tmp_path / "run", data(faces))
    named = {row[0] for row in read_table(tmp_path / "run")[1:]}
    assert len(named) >= 2 and named <= bad


def test_images_of_all_ranks_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[dict[str, str]], own: dict[str, str]) -> None:
        found[:] = [own, {"there": "gone"}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(loading, "MOST", 0.2)
    module = data(TinyFaces())
    module.quarantine.reasons = {"here": "empty"}
    settings = {"datamodule": module, "world_size": 2, "is_global_zero": True, "loggers": [], "fast_dev_run": 0}
    trainer = cast(pl.Trainer, SimpleNamespace(**settings, default_root_dir=str(tmp_path)))
    callback, no_module = QuarantineCallback(), cast(pl.LightningModule, None)
    callback.on_train_epoch_end(trainer, no_module)
    assert read_table(tmp_path)[1:] == [["here", "empty"], ["there", "gone"]]
    monkeypatch.setattr(loading, "MOST", 0.1)
    with pytest.raises(ValueError, match="2 of 18 images cannot be read, more than 10%: here, there"):
        callback.on_train_epoch_end(trainer, no_module)


def test_full_disk_does_not_stop_training(
    faces: FolderFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Quarantine, path: Path) -> None:
        raise OSError(28, "No space left on device")

    spoil(faces, "train")
    monkeypatch.setattr(Quarantine, "write", full)
    assert fit_faces(tmp_path / "run", data(faces), epochs=1)
    assert caplog.text.count(f"cannot write {tmp_path / 'run' / QUARANTINE} (No space left on device)") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_command_names_the_unreadable_image(
    faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    bad, run = spoil(faces, "train"), tmp_path / "run"
    settings = {"root": faces.root, "aligned": "canonical", "seed": 1}
    argv = [f"--data.face_set.init_args.{key}={value}" for key, value in settings.items()]
    argv += ["--data.num_workers", str(workers), "--data.val_people", "1", "--trainer.max_epochs", "1"]
    argv += ["--trainer.check_val_every_n_epoch", "1", "--run", str(run), *SMALL, *TINY_STAGE1]
    run_deocc("fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in ("inpaint", "data/folder")), *argv)
    line = rf"deocc fit: 1 of \d+ images could not be read and were left out: {re.escape(str(run / QUARANTINE))}"
    assert re.search(line, capfd.readouterr().out)
    assert faces.names[bad] in (run / QUARANTINE).read_text()
