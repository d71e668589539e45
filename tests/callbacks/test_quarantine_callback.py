"""What a training tells of its unreadable images: a file, a number to the loggers, a line at the end, and nothing where there are none."""

import csv
import io
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from deocc.callbacks.faults import QUARANTINE, QuarantineCallback
from deocc.data import FolderFaces, MaskedFaceDataModule, quarantine
from deocc.data.quarantine import Quarantine
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.data.conftest import TinyFaces
from tests.data.test_quarantine import Batch, data, draw, spoil


@pytest.fixture
def faces(tmp_path: Path) -> FolderFaces:
    return FolderFaces(str(draw(tmp_path / "faces")), aligned="canonical", seed=1)


class Trained(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.weight * 0

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, module: MaskedFaceDataModule, epochs: int = 2) -> list[dict[str, str]]:
    """Train a little with the callback; the rows of `metrics.csv` that tell of unreadable images."""
    settings: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_val_batches=0,
        accelerator="cpu",
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[QuarantineCallback()],
        **settings,
    )
    trainer.fit(Trained(), datamodule=module)
    metrics = folder / "metrics.csv"
    rows = list(csv.DictReader(io.StringIO(metrics.read_text()))) if metrics.is_file() else []
    return [row for row in rows if row.get("train/quarantined")]


def test_a_training_writes_logs_and_tells_how_many(
    faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, run = spoil(faces, "train"), tmp_path / "run"
    rows = fit(run, data(faces))
    assert {float(row["train/quarantined"]) for row in rows} == {1.0}
    assert len(rows) == 2  # when it was found, and at the end
    with (run / QUARANTINE).open(newline="") as file:
        table = list(csv.reader(file))
    assert [row[0] for row in table] == ["name", faces.names[bad]]
    assert "truncated" in table[1][1]
    out = capfd.readouterr().out
    assert f"deocc fit: 1 of 104 images could not be read and were left out: {run / QUARANTINE}\n" in out


def test_a_training_that_reads_all_writes_nothing(
    faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", data(faces), epochs=1) == []
    assert not (tmp_path / "run" / QUARANTINE).exists()
    assert "could not be read" not in capfd.readouterr().out


def test_a_training_that_stops_for_too_many_writes_them_down(faces: FolderFaces, tmp_path: Path) -> None:
    bad = [spoil(faces, "train", number=number) for number in range(0, 60, 20)]
    with pytest.raises(ValueError, match="images cannot be read"):
        fit(tmp_path / "run", data(faces))
    with (tmp_path / "run" / QUARANTINE).open(newline="") as file:
        named = {row[0] for row in list(csv.reader(file))[1:]}
    assert len(named) >= 2
    assert named <= {faces.names[index] for index in bad}


def test_what_all_processes_found_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[dict[str, str]], own: dict[str, str]) -> None:
        found[:] = [own, {"there": "gone"}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(quarantine, "MOST", 0.2)
    module = data(TinyFaces())
    module.quarantine.load_state_dict({"here": "empty"})
    described = {
        "datamodule": module,
        "world_size": 2,
        "is_global_zero": True,
        "loggers": [],
        "default_root_dir": str(tmp_path),
    }
    callback, trainer = QuarantineCallback(), cast(pl.Trainer, SimpleNamespace(**described))
    callback.on_train_epoch_end(trainer, cast(pl.LightningModule, None))
    with (tmp_path / QUARANTINE).open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["here", "empty"], ["there", "gone"]]
    monkeypatch.setattr(quarantine, "MOST", 0.1)
    with pytest.raises(ValueError, match="2 of 18 images cannot be read, more than 10%: here, there"):
        callback.on_train_epoch_end(trainer, cast(pl.LightningModule, None))


def test_a_full_disk_stops_no_training(faces: FolderFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Quarantine, path: Path) -> None:
        raise OSError(28, "No space left on device")

    spoil(faces, "train")
    monkeypatch.setattr(Quarantine, "write", full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert fit(tmp_path / "run", data(faces), epochs=1)
    path = tmp_path / "run" / QUARANTINE
    wanted = f"cannot write {path} (No space left on device): make room; it is written again with the next image"
    assert [str(warning.message) for warning in told].count(wanted) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_fit_ends_well_and_names_the_image(
    faces: FolderFaces, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    bad, run = spoil(faces, "train"), tmp_path / "run"
    settings = {"root": faces.root, "aligned": "canonical", "seed": 1}
    words = [f"--data.face_set.init_args.{key}={value}" for key, value in settings.items()]
    words += ["--data.num_workers", str(workers), "--data.val_people", "1", "--trainer.max_epochs", "1"]
    words += ["--trainer.check_val_every_n_epoch", "1", "--run", str(run), *SMALL, *TINY_STAGE1]
    run_deocc("fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in ("inpaint", "data/folder")), *words)
    out, err = capfd.readouterr()
    assert re.search(
        rf"deocc fit: 1 of \d+ images could not be read and were left out: {re.escape(str(run / QUARANTINE))}", out
    )
    assert faces.names[bad] in (run / QUARANTINE).read_text()
    assert err.count(f"{faces.names[bad]} is left out: ") == 1
