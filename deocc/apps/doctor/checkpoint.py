"""The run at hand: can its checkpoint be read, what is it, and is anything of it missing or out of date?"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from deocc import runs
from deocc.apps.doctor.finding import NEEDED, Check, Finding
from deocc.apps.doctor.fit import look_at_alignment, look_at_fit

_FIT: Final = "deocc fit --config configs/inpaint.yaml && deocc fit --config configs/distill.yaml"


def checks(given: Path | None, data: Path | None) -> list[Check]:
    """Checks of the given run, checkpoint file or model folder, or of the newest run; and of what fits the given folder of faces."""
    remedy = "give a run folder, a checkpoint file or a model folder to --checkpoint"
    return [
        Check("run", partial(_look_at, given), (NEEDED,), remedy),
        Check("fit of run and data", partial(_look_at_fit, given, data), (NEEDED,), remedy),
    ]


def _newest() -> Path | None:
    try:
        return runs.newest_run("deocc.modules.")
    except FileNotFoundError:
        return None


def _look_at_fit(given: Path | None, data: Path | None) -> Iterator[Finding]:
    place = given or _newest()
    if place is not None and _is_there(place):
        yield from look_at_fit(place, data)
    elif data is not None:
        yield from look_at_alignment(data, None)


def _is_there(place: Path) -> bool:
    """Whether there is something to compare; that nothing is there is said of the run."""
    from deocc.apps.pipeline.folder import CONFIG

    try:
        return (place / CONFIG).is_file() or runs.find_checkpoint(place).is_file()
    except FileNotFoundError:
        return False


def _look_at(given: Path | None) -> Iterator[Finding]:
    place = given or _newest()
    if place is None:
        yield from _without_run()
        return
    from deocc.apps.pipeline.folder import CONFIG, FOLDER, read_model

    if (place / CONFIG).is_file():
        config, _ = read_model(place)
        yield Finding("OK", f"model folder {place}: whole, student {config['student']['name']}, faces of {config['face']['size']} pixels")
        return
    file = runs.find_checkpoint(place)
    yield from _look_at_checkpoint(file)
    run = runs.run_folder_of(file)
    if not (run / runs.CONFIG).is_file():
        yield Finding("warning", f"{run} has no {runs.CONFIG}: commands cannot tell what it was trained on", "copy it from the run")
    if (run / FOLDER / CONFIG).is_file():
        read_model(run / FOLDER)
        if (run / FOLDER / CONFIG).stat().st_mtime_ns < file.stat().st_mtime_ns:
            yield Finding("warning", f"{run / FOLDER} is older than {file}", f"deocc test --checkpoint {run}")
        else:
            yield Finding("OK", f"{run / FOLDER}: whole")


def _without_run() -> Iterator[Finding]:
    from deocc.apps.pipeline.folder import pretrained_folder

    absent = f"no trained run below {runs.ROOT.absolute()}"
    try:
        pretrained_folder()
    except FileNotFoundError:
        yield Finding("warning", absent, _FIT)
    else:
        yield Finding("OK", f"{absent}; commands for photos use the pretrained model")


def _look_at_checkpoint(file: Path) -> Iterator[Finding]:
    from deocc.callbacks.calibration import read_thresholds
    from deocc.networks.weights import read_checkpoint

    content: dict[str, Any] = read_checkpoint(file)
    stage = content.get("stage", "unknown")
    said = f"{file}: stage {stage}, epoch {content.get('epoch', 'unknown')}, {file.stat().st_size / 1e6:.0f} MB"
    if stage not in ("inpainting", "distillation"):
        yield Finding("wrong", f"{said}: no stage of deocc", _FIT)
        return
    yield Finding("OK", said)
    if stage == "inpainting":
        yield Finding("OK", "it is a stage 1: verify, identify and export need a stage 2, `deocc fit --config configs/distill.yaml`")
    elif read_thresholds(file) is None:
        run = runs.run_folder_of(file)
        yield Finding("warning", f"{file} has no thresholds, so `deocc verify` cannot decide", f"deocc test --checkpoint {run}")
