"""W&B and TensorBoard get the same images, figures, tables and configuration; other loggers get none."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deocc.callbacks.dashboards import log_config, log_figure, log_image, log_table, shows_images
from deocc.evaluation.figures import png_bytes

CELLS = (["", "EER %", "95 % interval"], [["teacher", "12.50", "1 to 2"], ["student", "n/a", "3 to 4"]])
STEP = 7


class RecordingWandb(WandbLogger):
    """A WandbLogger that keeps what is logged."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.images: dict[str, list[Any]] = {}
        self.config: dict[str, Any] = {}

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(config=self)

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        self.config.update(values)

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: Any = None
    ) -> None:
        self.tables[key] = (columns, data, step)

    def log_image(self, key: str, images: list[Any], step: Any = None, **kwargs: Any) -> None:
        self.images[key] = [*images, step]


def trainer_with(*loggers: Any, folder: Path | None = None) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=STEP))
    flags = {"sanity_checking": False, "fast_dev_run": False, "is_global_zero": True}
    return SimpleNamespace(loggers=list(loggers), fit_loop=loop, default_root_dir=str(folder), **flags)


@pytest.fixture
def board(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path, name="", version="")


def read_events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return events


def text_of(events: EventAccumulator, key: str) -> str:
    (event,) = events.Tensors(f"{key}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def test_table_is_typed_or_markdown(board: TensorBoardLogger) -> None:
    wandb = RecordingWandb()
    log_table(trainer_with(wandb, board), "test/rows", CELLS)
    columns = ["row", "EER %", "95 % interval"]
    assert wandb.tables == {"test/rows": (columns, [["teacher", 12.5, "1 to 2"], ["student", None, "3 to 4"]], STEP)}
    header, rule, *rows = text_of(read_events(board), "test/rows").splitlines()
    assert (header, rule) == ("|  | EER % | 95 % interval |", "| --- | ---: | ---: |")
    assert rows == ["| teacher | 12.50 | 1 to 2 |", "| student | n/a | 3 to 4 |"]


def test_figure_arrives_pixel_by_pixel(board: TensorBoardLogger) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    drawn = np.array(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB"))
    wandb = RecordingWandb()
    log_figure(trainer_with(wandb, board), "test/roc", figure)
    image, step = wandb.images["test/roc"]
    (event,) = read_events(board).Images("test/roc")
    assert step == event.step == STEP
    np.testing.assert_array_equal(image, drawn)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), drawn)


@pytest.mark.parametrize("name", ["api_key", "WANDB_API_KEY", "apikey", "token", "hub_token", "password", "secret"])
def test_secrets_are_not_shown(name: str, board: TensorBoardLogger) -> None:
    visible = {"project": "deocc"}
    config: dict[str, Any] = {"model": {"tokens": 3, "keys": ["a"]}}
    wandb = RecordingWandb()
    secret = {"trainer": {"logger": [{"init_args": {name: "hush-hush", **visible}}]}}
    log_config(trainer_with(wandb, board), config | secret)
    assert wandb.config == config | {"trainer": {"logger": [{"init_args": visible}]}}
    assert "hush" not in (shown := text_of(read_events(board), "config")) and "deocc" in shown


def test_other_loggers_get_nothing(tmp_path: Path) -> None:
    trainer = trainer_with(CSVLogger(tmp_path))
    log_table(trainer, "test/rows", CELLS)
    log_figure(trainer, "test/roc", Figure())
    log_image(trainer, "val/panel", np.zeros((2, 2, 3), np.uint8))
    log_config(trainer, {"seed_everything": 0})
    assert not shows_images(trainer) and list(tmp_path.iterdir()) == []


def test_full_disk_does_not_stop_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(RecordingWandb):
        def log_image(self, key: str, images: list[Any], step: Any = None, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

    log_image(trainer_with(Full(), folder=tmp_path), "val/panel", np.zeros((2, 2, 3), np.uint8))
    assert f"cannot write {tmp_path / 'wandb'} (No space left on device)" in caplog.text
