"""The run at hand: can its checkpoint be read, what is it, and is anything of it missing or out of date?"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc import runs
from deocc.commands.doctor.finding import NEEDED, Check, Finding
from deocc.detection import Detector
from deocc.detection.detector import Detection
from deocc.geometry import TEMPLATES

_CELEBA_PARTS: Final = ("img_align_celeba", "img_celeba", "identity_CelebA", "list_eval_partition", "Anno")


def checks(given: Path | None) -> list[Check]:
    """A check for each usual folder that is there, and for the one that was given."""
    look: dict[str, Callable[[Path], Iterator[Finding]]] = {
        "celeba": _look_at_celeba,
        "lfw": _look_at_lfw,
        "ar": _look_at_ar,
    }
    usual = {name: Path("data") / name for name in look}
    there = [
        Check(f"data set {path}", partial(look[name], path), (NEEDED,), f"put a whole copy there, or remove {path}")
        for name, path in usual.items()
        if path.is_dir()
    ]
    if not there:
        there = [Check("data sets", partial(_none, list(usual.values())))]
    if given is not None:
        there.append(
            Check(f"--data {given}", partial(_look_at_given, given), (NEEDED,), "give the folder that holds the set")
        )
    return there


def is_celeba(folder: Path) -> bool:
    """Whether something of CelebA's names lies in the folder."""
    return any(path.name.startswith(_CELEBA_PARTS) for path in folder.iterdir())


def _none(looked: list[Path]) -> Iterator[Finding]:
    places = ", ".join(str(path) for path in looked)
    yield Finding("OK", f"no data sets below data/ (looked for {places}): the embedded faces need none")


def _look_at_celeba(folder: Path) -> Iterator[Finding]:
    from deocc.data import CelebaFaces

    faces = CelebaFaces(str(folder))
    yield Finding("OK", f"{folder}: CelebA, {len(faces):,} images of {len(faces.split_of_person):,} people")


def _look_at_lfw(folder: Path) -> Iterator[Finding]:
    """Its lists and files; its landmarks are left alone, since to find them takes a detector minutes."""
    import numpy as np

    from deocc.data import LfwFaces
    from deocc.data.landmarks import FoundLandmarks

    class Listed(LfwFaces):
        def _find_landmarks(self, names: Sequence[str], detector: str, weights: str | None) -> FoundLandmarks:
            return FoundLandmarks(names, np.zeros((len(names), 5, 2)), np.ones((len(names), 2), np.int64))

    faces = Listed(str(folder))
    yield Finding("OK", f"{folder}: LFW, {len(faces):,} images of {len(faces.split_of_person):,} people")


def _look_at_ar(folder: Path) -> Iterator[Finding]:
    """Only whether there are images: all else comes with the landmarks, which take a detector minutes."""
    from deocc.data.images import IMAGE_SUFFIXES

    number = sum(path.suffix.lower() in IMAGE_SUFFIXES | {".raw"} for path in folder.rglob("*"))
    if number == 0:
        raise FileNotFoundError(f"no image below {folder.absolute()}")
    yield Finding(
        "OK", f"{folder}: {number:,} images; whether AR is whole, `deocc test --config configs/paper/ar.yaml` tells"
    )


def _look_at_given(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder.absolute()}")
    if is_celeba(folder):
        yield from _look_at_celeba(folder)
        return
    from deocc.data.folder import list_folder

    listing = list_folder(folder)
    yield Finding("OK", f"{folder}: {len(listing.names):,} images of {len(listing.people):,} people")


_CLOSE: Final = 0.2
"""Farther from every template, in eye distances, crops are taken for not aligned. OURS: dlib's detector puts ORL's crops of any template
0.07 from it, and ORL's uncropped images 0.37 from the nearest."""

_CLEARLY: Final = 0.08
"""How much nearer, in eye distances, another template must be than the named one. OURS: on ORL's crops 0.12 and more part any two but
facenet's and canonical ones, which 0.03 part, too little to tell."""

_MARGIN: Final = 0.5  # of the side, added around a crop: detectors look for whole heads


class Fit(NamedTuple):
    """How crops lie to the templates."""

    distance: dict[str, float]
    """By template, the median over the crops of the mean distance of the five points, in eye distances."""
    found: int
    """Crops in which a face was found."""

    @property
    def nearest(self) -> str:
        """The template with the smallest distance."""
        return min(self.distance, key=lambda name: self.distance[name])

    @property
    def is_aligned(self) -> bool:
        """Whether they are aligned to any template at all."""
        return self.distance[self.nearest] < _CLOSE

    def contradicts(self, name: str) -> bool:
        """Whether they are clearly not aligned to the template of this name."""
        return self.distance[name] > self.distance[self.nearest] + _CLEARLY


def measure(crops: Iterable[NDArray[np.uint8]], detector: Detector) -> Fit | None:
    """How crops lie to the templates; None where no face is found in any.

    Args:
        crops: (H, W, 3) RGB each; a template is scaled to the width.
        detector: finds their landmarks.
    """
    rows = [row for crop in crops if (row := _distances(crop, detector)) is not None]
    if not rows:
        return None
    return Fit(dict(zip(TEMPLATES, np.median(rows, axis=0).tolist(), strict=True)), len(rows))


def spread(paths: Sequence[Path], number: int) -> list[Path]:
    """So many of the paths, evenly from the first to the last."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(number, len(paths))).round().astype(int))
    return [paths[place] for place in places.tolist()]


def _distances(crop: NDArray[np.uint8], detector: Detector) -> list[float] | None:
    margin = round(_MARGIN * crop.shape[1])
    faces = detector.detect(np.pad(crop, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    if not faces:
        return None
    points = max(faces, key=_width).landmarks - margin
    eyes = float(np.linalg.norm(points[1] - points[0]))
    templates = (TEMPLATES[name].tensor(crop.shape[1]).double().numpy() for name in TEMPLATES)
    return [float(np.linalg.norm(points - template, axis=1).mean()) / eyes for template in templates]


def _width(face: Detection) -> float:
    return float(face.box[2] - face.box[0])


if TYPE_CHECKING:
    from deocc.data import FaceSet

_MOST_READ: Final = 20_000
"""Images whose pixels are read for a fingerprint, at most: a minute or two. OURS."""

_CROPS: Final = 12  # of a folder, tried for their alignment
_EQUAL: Final = 0.01  # pixels; a template is written with four digits


def look_at_fit(place: Path, data: Path | None) -> Iterator[Finding]:
    """Findings on a run folder, a checkpoint file or a model folder, and on the folder of faces that was given.

    A model folder within a run has what the run recorded; one by itself only what its `config.json` says.
    """
    from deocc.inference.model_folder import CONFIG, FOLDER

    run = place if (place / CONFIG).is_file() else runs.run_folder_of(runs.find_checkpoint(place))
    model = _read_json(run / CONFIG) or _read_json(run / FOLDER / CONFIG)
    results = _read_json(run / runs.RESULTS)
    name, settings = runs.face_set_of(run)
    yield from _look_at_template(model)
    sizes = {
        "config.yaml": _size_of_config(run),
        "model": model.get("face", {}).get("size"),
        "test": results.get("size"),
    }
    yield from _look_at_sizes(sizes)
    if data is not None:
        yield from look_at_alignment(data, settings.get("aligned"))
    yield from _look_at_people(name, _settings_for(name, settings, data), model.get("training") or results)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or nothing where there is no file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: write it anew")
    return content


def _size_of_config(run: Path) -> int | None:
    import yaml

    file = run / runs.CONFIG
    return yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("size") if file.is_file() else None


def _look_at_template(model: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the model's faces are cut out as this version of deocc cuts them."""
    import torch

    from deocc.geometry import TEMPLATES

    if "face" not in model:
        return
    size, points = int(model["face"]["size"]), torch.tensor(model["face"]["template"])
    expected = TEMPLATES["canonical"].tensor(size)
    off = float((points - expected).abs().max()) if points.shape == expected.shape else float("inf")
    if off > _EQUAL:
        said = f"the model was trained on faces aligned otherwise: its template's points are up to {off:.2f} pixels from this deocc's"
        yield Finding("warning", said, "use the deocc version that trained it, or train again")
    else:
        yield Finding("OK", f"alignment: the model's template is this deocc's, at {size} pixels")


def _look_at_sizes(recorded: Mapping[str, int | None]) -> Iterator[Finding]:
    known = {where: size for where, size in recorded.items() if size is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{where} {size}" for where, size in known.items())
        yield Finding(
            "warning", f"the size of the faces differs: {listed}", "test with the --data.size that it was trained with"
        )


def look_at_alignment(folder: Path, named: str | None) -> Iterator[Finding]:
    """By which template the crops of the folder are aligned, and whether it is the one that the run names.

    Nothing is said of a folder that is not there, or of CelebA, which has landmarks of its own.
    """
    if not folder.is_dir() or is_celeba(folder):
        return
    pass
    from deocc.data.folder import list_folder
    from deocc.data.images import read_image
    from deocc.detection import create_detector

    paths = [folder / name for name in list_folder(folder).names]
    fit = measure((read_image(path) for path in spread(paths, _CROPS)), create_detector("dlib"))
    if fit is None:
        yield Finding(
            "warning", f"{folder}: no face is found in {min(_CROPS, len(paths))} of its images", "look at them"
        )
        return
    near = f"({fit.distance[fit.nearest]:.2f} eye distances off, by {fit.found} images)"
    if not fit.is_aligned:
        said = f"{folder}: its images are not aligned to any known template; the nearest is {fit.nearest} {near}"
        yield Finding("warning", said, "align them, or give photos to the commands that find faces themselves")
    elif named is not None and fit.contradicts(named):
        remedy = f"--data.face_set.init_args.aligned {fit.nearest}"
        yield Finding(
            "warning", f"{folder}: its crops are aligned as {fit.nearest} {near}, the run names {named}", remedy
        )
    else:
        yield Finding("OK", f"{folder}: its crops are aligned as {named or fit.nearest} {near}")


def _settings_for(name: str | None, settings: Mapping[str, Any], data: Path | None) -> dict[str, Any]:
    """The settings of the run's face set, at the given folder where that holds a set of the kind."""
    fits = data is not None and data.is_dir() and "root" in settings and is_celeba(data) == (name == "CelebaFaces")
    return {**settings, "root": str(data)} if fits else dict(settings)


def _look_at_people(name: str | None, settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the set at hand holds the training people that the run recorded."""
    import deocc.data

    if recorded.get("training_data_hash") is None or name not in (None, recorded.get("data")):
        yield Finding(
            "OK", "training data: no fingerprint is recorded yet; `deocc test` on the run's own data records one"
        )
        return
    if name is None:
        noted = f"training data: fingerprint {recorded['training_data_hash']} of {recorded.get('data')}"
        yield Finding("OK", f"{noted}; its settings are not in this folder, so it is not compared")
        return
    face_set_class = getattr(deocc.data, name, None)
    if not (
        isinstance(face_set_class, type) and issubclass(face_set_class, deocc.data.FaceSet)
    ):  # the name comes from a file
        yield Finding("OK", f"training data: {name} is a face set of your own and not compared")
        return
    try:
        faces = face_set_class(**settings)
    except (OSError, ValueError) as error:
        said = f"training data: not at hand, so it cannot be compared ({error})"
        yield Finding("warning", said, "give its folder to --data")
        return
    yield _compared(faces, str(recorded["training_data_hash"]))


def _compared(faces: "FaceSet", recorded: str) -> Finding:
    from deocc.data import FaceSet

    number = len(faces.indices("train"))
    if type(faces).content is FaceSet.content and number > _MOST_READ:
        return Finding(
            "OK",
            f"training data: {number:,} images are too many to be read here; `deocc test` writes their fingerprint",
        )
    found = faces.fingerprint("train")
    if found == recorded:
        return Finding("OK", f"training data: the run was trained on the people at hand (fingerprint {found})")
    said = f"training data: the fingerprint at hand is {found}, the run recorded {recorded}: other images, people, landmarks or splits"
    return Finding("warning", said, "give the data that it was trained on to --data, or train and test again")


_FIT: Final = "deocc fit --config configs/inpaint.yaml && deocc fit --config configs/distill.yaml"


def checkpoint_checks(given: Path | None, data: Path | None) -> list[Check]:
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
    from deocc.inference.model_folder import CONFIG

    try:
        return (place / CONFIG).is_file() or runs.find_checkpoint(place).is_file()
    except FileNotFoundError:
        return False


def _look_at(given: Path | None) -> Iterator[Finding]:
    place = given or _newest()
    if place is None:
        yield from _without_run()
        return
    from deocc.inference.model_folder import CONFIG, FOLDER, read_model

    if (place / CONFIG).is_file():
        config, _ = read_model(place)
        yield Finding(
            "OK",
            f"model folder {place}: whole, student {config['student']['name']}, faces of {config['face']['size']} pixels",
        )
        return
    file = runs.find_checkpoint(place)
    yield from _look_at_checkpoint(file)
    run = runs.run_folder_of(file)
    if not (run / runs.CONFIG).is_file():
        yield Finding(
            "warning",
            f"{run} has no {runs.CONFIG}: commands cannot tell what it was trained on",
            "copy it from the run",
        )
    if (run / FOLDER / CONFIG).is_file():
        read_model(run / FOLDER)
        if (run / FOLDER / CONFIG).stat().st_mtime_ns < file.stat().st_mtime_ns:
            yield Finding("warning", f"{run / FOLDER} is older than {file}", f"deocc test --checkpoint {run}")
        else:
            yield Finding("OK", f"{run / FOLDER}: whole")


def _without_run() -> Iterator[Finding]:
    from deocc.inference.model_folder import pretrained_folder

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
        yield Finding(
            "OK",
            "it is a stage 1: verify, identify and export need a stage 2, `deocc fit --config configs/distill.yaml`",
        )
    elif read_thresholds(file) is None:
        run = runs.run_folder_of(file)
        yield Finding(
            "warning", f"{file} has no thresholds, so `deocc verify` cannot decide", f"deocc test --checkpoint {run}"
        )
