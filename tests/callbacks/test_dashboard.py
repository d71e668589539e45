"""W&B and TensorBoard get the same images, figures, tables and configuration; a logger of numbers gets none."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deocc.callbacks import PanelCallback
from deocc.callbacks.dashboards import log_config, log_figure, log_image, log_table, shows_images
from deocc.evaluation import png_bytes
from deocc.masking import list_kinds

CELLS = (["", "EER %", "95 % interval"], [["teacher", "12.50", "1 to 2"], ["student", "n/a", "3 to 4"]])
STEP = 7


class RecordingWandb(WandbLogger):
    """A WandbLogger that keeps what it is given."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.images: dict[str, list[Any]] = {}
        self._experiment = SimpleNamespace(config={})

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(
            config=SimpleNamespace(update=lambda values, allow_val_change: self._experiment.config.update(values))
        )

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: Any = None
    ) -> None:
        self.tables[key] = (columns, data, step)

    def log_image(self, key: str, images: list[Any], step: Any = None, **kwargs: Any) -> None:
        self.images[key] = [*images, step]


def trainer_with(*loggers: Any, folder: Path | None = None) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=STEP))
    return SimpleNamespace(
        loggers=list(loggers),
        fit_loop=loop,
        sanity_checking=False,
        fast_dev_run=False,
        is_global_zero=True,
        default_root_dir=str(folder),
    )


def read_events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return events


def text_of(events: EventAccumulator, key: str) -> str:
    (event,) = events.Tensors(f"{key}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def test_a_table_is_typed_by_column_in_wandb_and_markdown_in_tensorboard(tmp_path: Path) -> None:
    wandb, board = RecordingWandb(), TensorBoardLogger(tmp_path, name="", version="")
    log_table(trainer_with(wandb, board), "test/rows", CELLS)
    columns = ["row", "EER %", "95 % interval"]
    assert wandb.tables == {"test/rows": (columns, [["teacher", 12.5, "1 to 2"], ["student", None, "3 to 4"]], STEP)}
    lines = text_of(read_events(board), "test/rows").splitlines()
    assert lines == [
        "|  | EER % | 95 % interval |",
        "| --- | ---: | ---: |",
        "| teacher | 12.50 | 1 to 2 |",
        "| student | n/a | 3 to 4 |",
    ]


def test_a_figure_arrives_pixel_by_pixel_in_both(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    drawn = np.array(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB"))
    wandb, board = RecordingWandb(), TensorBoardLogger(tmp_path, name="", version="")
    log_figure(trainer_with(wandb, board), "test/roc", figure)
    image, step = wandb.images["test/roc"]
    (event,) = read_events(board).Images("test/roc")
    assert step == event.step == STEP
    np.testing.assert_array_equal(image, drawn)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), drawn)


@pytest.mark.parametrize("name", ["api_key", "WANDB_API_KEY", "apikey", "token", "hub_token", "password", "secret"])
def test_secrets_stay_off_the_dashboards_at_any_depth(name: str, tmp_path: Path) -> None:
    config = {
        "model": {"tokens": 3, "keys": ["a"]},
        "trainer": {"logger": [{"init_args": {name: "hush-hush", "project": "deocc"}}]},
    }
    wandb, board = RecordingWandb(), TensorBoardLogger(tmp_path, name="", version="")
    log_config(trainer_with(wandb, board), config)
    assert wandb._experiment.config == {
        "model": {"tokens": 3, "keys": ["a"]},
        "trainer": {"logger": [{"init_args": {"project": "deocc"}}]},
    }
    assert "hush" not in (shown := text_of(read_events(board), "config")) and "deocc" in shown


def test_a_logger_of_numbers_gets_nothing(tmp_path: Path) -> None:
    trainer = trainer_with(CSVLogger(tmp_path))
    log_table(trainer, "test/rows", CELLS)
    log_figure(trainer, "test/roc", Figure())
    log_image(trainer, "val/panel", np.zeros((2, 2, 3), np.uint8))
    log_config(trainer, {"seed_everything": 0})
    assert not shows_images(trainer) and list(tmp_path.iterdir()) == []


def batch_of(kinds: list[int], shade: float) -> dict[str, torch.Tensor]:
    faces = torch.full((len(kinds), 3, 8, 8), shade) + torch.arange(len(kinds)).reshape(-1, 1, 1, 1) / 100
    return {"face": faces, "masked_face": faces, "kind": torch.tensor(kinds)}


def test_a_panel_holds_the_first_face_of_every_kind_and_a_picture_a_kind(tmp_path: Path) -> None:
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
