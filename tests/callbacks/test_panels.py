"""A panel holds the first face of every kind, in its file and on the dashboards."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deocc.callbacks import PanelCallback, PredictionCallback
from deocc.masking import list_kinds
from tests.callbacks.test_dashboards import STEP, RecordingWandb, trainer_with


def batch_of(kinds: list[int], shade: float) -> dict[str, torch.Tensor]:
    faces = torch.full((len(kinds), 3, 8, 8), shade) + torch.arange(len(kinds)).reshape(-1, 1, 1, 1) / 100
    return {"face": faces, "masked_face": faces, "kind": torch.tensor(kinds)}


def test_panel_shows_every_kind_once(tmp_path: Path) -> None:
    wandb, callback = RecordingWandb(), PanelCallback()
    trainer = trainer_with(wandb, folder=tmp_path)
    callback.on_validation_epoch_start(trainer, None)  # type: ignore[arg-type]
    for kinds, shade in (([-1, 2, 2], 0.0), ([2, 5], 0.5)):
        callback.on_validation_batch_end(trainer, None, {}, batch_of(kinds, shade), 0)
    callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    columns, labels = callback.panel()
    assert list(columns) == ["clean", "masked"] and labels == [list_kinds()[2], list_kinds()[5]]
    torch.testing.assert_close(columns["clean"][:, 0, 0, 0], torch.tensor([0.01, 0.51]))
    assert set(wandb.images) == {"val/panel", *(f"val/face/{kind}" for kind in labels)}
    sheet, strips = wandb.images["val/panel"][0], [wandb.images[f"val/face/{kind}"][0] for kind in labels]
    np.testing.assert_array_equal(sheet[24:, 110:], np.concatenate([strip[24:, 110:] for strip in strips]))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "panels" / f"step-{STEP:07d}.png")), sheet)


def test_prediction_sheet_has_columns_of_outputs(tmp_path: Path) -> None:
    """A segmenter predicts masks and completes no faces."""
    callback, trainer, batch = PredictionCallback(), SimpleNamespace(default_root_dir=tmp_path), batch_of([2, 5], 0.0)
    widths = []
    for rank, names in enumerate((["mask"], ["mask", "completed_face"])):
        trainer.global_rank = rank
        callback.on_predict_batch_end(trainer, None, dict.fromkeys(names, batch["face"]), batch, 0)
        with Image.open(tmp_path / "predictions" / f"sheet-{rank}-0000.png") as sheet:
            widths.append(sheet.width)
    assert widths[0] < widths[1] and callback.rows == []


def test_unwritable_panel_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "panels").write_text("in the way")
    callback, trainer = PanelCallback(), trainer_with(folder=tmp_path)
    callback.on_validation_batch_end(trainer, None, {}, batch_of([2], 0.0), 0)
    callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert f"cannot write {tmp_path / 'panels'}" in caplog.text
