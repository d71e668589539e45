"""Checks of a run, checkpoint or model folder, alone and against the data."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import yaml

import deocc.data
from deocc import runs
from deocc.commands.doctor.data import check_alignment, is_celeba
from deocc.commands.doctor.findings import Check, Context, Finding
from deocc.data import FaceSet
from deocc.evaluation.thresholds import read_thresholds
from deocc.geometry import TEMPLATES
from deocc.inference.model_folder import CONFIG, FOLDER, pretrained_folder, read_model
from deocc.networks.weights import read_checkpoint

_TRAIN: Final = "deocc fit --config inpaint && deocc fit --config distill"
_MAX_READ: Final = 20_000
"""Largest number of images whose pixels are read for a fingerprint, which takes a minute or two."""

_TEMPLATE_TOLERANCE: Final = 0.01
"""Pixels; a template is stored with four digits."""


def check_run(context: Context) -> Iterator[Finding]:
    """Check that the checkpoint and the model folder can be read and are complete."""
    place = context.checkpoint or _newest_run()
    if place is None:
        text = f"no trained run below {runs.ROOT.absolute()}"
        try:
            pretrained_folder()
        except FileNotFoundError:
            yield Finding("warning", text, _TRAIN)
        else:
            yield Finding("OK", f"{text}; commands for photos use the pretrained model")
        return
    if (place / CONFIG).is_file():
        config, _ = read_model(place)
        student, size = config["student"]["name"], config["face"]["size"]
        yield Finding("OK", f"model folder {place}: complete, student {student}, faces of {size} pixels")
        return
    checkpoint = runs.find_checkpoint(place)
    yield from _check_checkpoint(checkpoint)
    run = runs.run_folder_of(checkpoint)
    if not (run / runs.CONFIG).is_file():
        text = f"{run} has no {runs.CONFIG}: commands cannot find out what it was trained on"
        yield Finding("warning", text, "copy it from the run")
    model = run / FOLDER
    if (model / CONFIG).is_file():
        read_model(model)
        if (model / CONFIG).stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
            yield Finding("warning", f"{model} is older than {checkpoint}", f"deocc test --checkpoint {run}")
        else:
            yield Finding("OK", f"{model}: complete")


def check_fit(context: Context) -> Iterator[Finding]:
    """Compare the run with this version's template, with its records and with the data."""
    place = context.checkpoint or _newest_run()
    try:
        run = None if place is None else place if (place / CONFIG).is_file() else _run_of(place)
    except FileNotFoundError:  # reported by `check_run`
        run = None
    if run is None:
        alignment = None if context.data is None else check_alignment(context.data, None)
        if alignment is not None:
            yield alignment
        return
    model = _read_json(run / CONFIG) or _read_json(run / FOLDER / CONFIG)
    results = _read_json(run / runs.RESULTS)
    name, settings = runs.face_set_of(run)
    if "face" in model:
        yield _check_template(model["face"])
    sizes = {
        "config.yaml": _configured_size(run),
        "model": model.get("face", {}).get("size"),
        "test": results.get("size"),
    }
    sizes = {source: size for source, size in sizes.items() if size is not None}
    if len(set(sizes.values())) > 1:
        text = f"the size of the faces differs: {', '.join(f'{source} {size}' for source, size in sizes.items())}"
        yield Finding("warning", text, "test with the --data.size of the training")
    data = context.data
    if data is not None:
        alignment = check_alignment(data, settings.get("aligned"))
        if alignment is not None:
            yield alignment
        if data.is_dir() and "root" in settings and is_celeba(data) == (name == "CelebaFaces"):
            settings = {**settings, "root": str(data)}
    yield _check_training_data(name, settings, model.get("training") or results)


CHECKS: Final = (
    Check("run", check_run, "give a run folder, a checkpoint file or a model folder to --checkpoint"),
    Check("fit of run and data", check_fit, "give a run folder, a checkpoint file or a model folder to --checkpoint"),
)


def _newest_run() -> Path | None:
    try:
        return runs.newest_run("deocc.modules.")
    except FileNotFoundError:
        return None


def _run_of(place: Path) -> Path:
    return runs.run_folder_of(runs.find_checkpoint(place))


def _check_checkpoint(file: Path) -> Iterator[Finding]:
    content: dict[str, Any] = read_checkpoint(file)
    stage = content.get("stage", "unknown")
    text = f"{file}: stage {stage}, epoch {content.get('epoch', 'unknown')}, {file.stat().st_size / 1e6:.0f} MB"
    if stage not in ("inpainting", "distillation"):
        yield Finding("wrong", f"{text}: not a stage of deocc", _TRAIN)
        return
    yield Finding("OK", text)
    if stage == "inpainting":
        command = "deocc fit --config distill"
        yield Finding("OK", f"it is a stage 1: verify, identify and export need a stage 2, `{command}`")
    elif read_thresholds(file) is None:
        text = f"{file} has no thresholds, so `deocc verify` cannot decide"
        yield Finding("warning", text, f"deocc test --checkpoint {runs.run_folder_of(file)}")


def _check_template(face: Mapping[str, Any]) -> Finding:
    """Compare the model's alignment template with this version's."""
    size, points = int(face["size"]), torch.tensor(face["template"])
    expected = TEMPLATES["canonical"].tensor(size)
    error = float((points - expected).abs().max()) if points.shape == expected.shape else float("inf")
    if error <= _TEMPLATE_TOLERANCE:
        return Finding("OK", f"alignment: the model's template is the one of this version, at {size} pixels")
    text = f"the model was trained on another alignment: its template's points are up to {error:.2f} pixels off"
    return Finding("warning", text, "use the deocc version that trained it, or train again")


def _check_training_data(name: str | None, settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> Finding:
    """Compare the fingerprint of the training people with the recorded one."""
    expected = recorded.get("training_data_hash")
    if expected is None or name not in (None, recorded.get("data")):
        text = "training data: no fingerprint is recorded yet; `deocc test` on the run's data records one"
        return Finding("OK", text)
    if name is None:
        text = f"training data: fingerprint {expected} of {recorded.get('data')}; its settings are not in this folder"
        return Finding("OK", f"{text}, so it is not compared")
    face_set_class = getattr(deocc.data, name, None)  # the name comes from a file
    if not (isinstance(face_set_class, type) and issubclass(face_set_class, FaceSet)):
        return Finding("OK", f"training data: {name} is not a face set of deocc and is not compared")
    try:
        faces = face_set_class(**settings)
    except (OSError, ValueError) as error:
        text = f"training data: not available, so it cannot be compared ({error})"
        return Finding("warning", text, "give its folder to --data")
    count = len(faces.indices("train"))
    if face_set_class.content is FaceSet.content and count > _MAX_READ:
        return Finding("OK", f"training data: {count:,} images are too many to read; `deocc test` compares them")
    found = faces.fingerprint("train")
    if found == expected:
        return Finding("OK", f"training data: the run was trained on the people found here (fingerprint {found})")
    text = f"training data: the fingerprint is {found}, the run recorded {expected}: "
    remedy = "give the data that it was trained on to --data, or train and test again"
    return Finding("warning", f"{text}other images, people, landmarks or splits", remedy)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, empty if there is no file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: write it again")
    return content


def _configured_size(run: Path) -> int | None:
    file = run / runs.CONFIG
    return yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("size") if file.is_file() else None
