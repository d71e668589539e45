"""TensorBoard under faults: a disk that is full for a while, a run that is resumed; beside metrics.csv on a disk that is really full."""

import csv
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deocc.callbacks.loggers import MetricsLogger, TensorBoardRunLogger
from tests.callbacks.full_disk import log, no_file_above


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def steps_of(folder: Path, tag: str = "train/loss") -> list[int]:
    """The steps of a curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_a_disk_that_is_full_for_a_while_costs_no_row_and_no_event(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [
        MetricsLogger(str(small_disk), name="", version=""),
        TensorBoardRunLogger(small_disk, name="", version=""),
    ]
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    rows = [({"epoch": 0, "train/loss": step / 7}, step) for step in range(300)]
    for logger in loggers:
        log(logger, rows)
    assert capsys.readouterr().err.count("No space left on device") == 2
    filler.unlink()
    for logger in loggers:
        logger.save()
    with (small_disk / "metrics.csv").open(newline="") as text:
        assert [(float(row["train/loss"]), int(row["step"])) for row in csv.DictReader(text)] == [
            (step / 7, step) for step in range(300)
        ]
    assert steps_of(small_disk) == list(range(300))


@pytest.mark.parametrize("room", [0, 20, 60, 100, 300])
def test_tensorboard_waits_while_the_disk_is_full(
    room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = TensorBoardRunLogger(tmp_path, name="", version="")
    with no_file_above(room):
        log(logger, [({"train/loss": step / 7}, step) for step in range(5)])
        logger.experiment.add_image("val/panel", np.full((4, 4, 3), 9, np.uint8), 4, dataformats="HWC")
        logger.save()
    log(logger, [({"train/loss": 5 / 7}, 5)])
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, np.float32(step / 7)) for step in range(6)
    ]
    assert [event.step for event in events.Images("val/panel")] == [4]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "events.out.tfevents" in said[0] and said[1].endswith("can be written again")


@pytest.mark.parametrize("clock", [1.0, -3600.0])
def test_tensorboard_shows_the_steps_of_a_resumed_run_once(
    clock: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock was set back in between."""
    now = 1_700_000_000.0
    monkeypatch.setattr("deocc.callbacks.event_file.time", SimpleNamespace(time=lambda: now))
    first = TensorBoardRunLogger(tmp_path, name="", version="")
    first.forget_after(0)
    log(first, [({"train/loss": 0.0}, step) for step in range(7)])
    now += clock
    second = TensorBoardRunLogger(tmp_path, name="", version="")
    second.forget_after(4)
    log(second, [({"train/loss": 1.0}, step) for step in range(4, 9)])
    assert steps_of(tmp_path) == list(range(9))
