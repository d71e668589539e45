"""Does a run fit the data at hand: the alignment of faces, their size, and the people it was trained on?"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deocc import runs
from deocc.apps.doctor.data_folders import is_celeba
from deocc.apps.doctor.finding import Finding

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
    from deocc.apps.pipeline.folder import CONFIG, FOLDER

    run = place if (place / CONFIG).is_file() else runs.run_folder_of(runs.find_checkpoint(place))
    model = _read_json(run / CONFIG) or _read_json(run / FOLDER / CONFIG)
    results = _read_json(run / runs.RESULTS)
    name, settings = runs.face_set_of(run)
    yield from _look_at_template(model)
    sizes = {"config.yaml": _size_of_config(run), "model": model.get("face", {}).get("size"), "test": results.get("size")}
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
        yield Finding("warning", f"the size of the faces differs: {listed}", "test with the --data.size that it was trained with")


def look_at_alignment(folder: Path, named: str | None) -> Iterator[Finding]:
    """By which template the crops of the folder are aligned, and whether it is the one that the run names.

    Nothing is said of a folder that is not there, or of CelebA, which has landmarks of its own.
    """
    if not folder.is_dir() or is_celeba(folder):
        return
    from deocc.apps.doctor.alignment import measure, spread
    from deocc.data.folder_listing import list_folder
    from deocc.data.images import read_image
    from deocc.detection import create_detector

    paths = [folder / name for name in list_folder(folder).names]
    fit = measure((read_image(path) for path in spread(paths, _CROPS)), create_detector("dlib"))
    if fit is None:
        yield Finding("warning", f"{folder}: no face is found in {min(_CROPS, len(paths))} of its images", "look at them")
        return
    near = f"({fit.distance[fit.nearest]:.2f} eye distances off, by {fit.found} images)"
    if not fit.is_aligned:
        said = f"{folder}: its images are not aligned to any known template; the nearest is {fit.nearest} {near}"
        yield Finding("warning", said, "align them, or give photos to the commands that find faces themselves")
    elif named is not None and fit.contradicts(named):
        remedy = f"--data.face_set.init_args.aligned {fit.nearest}"
        yield Finding("warning", f"{folder}: its crops are aligned as {fit.nearest} {near}, the run names {named}", remedy)
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
        yield Finding("OK", "training data: no fingerprint is recorded yet; `deocc test` on the run's own data records one")
        return
    if name is None:
        noted = f"training data: fingerprint {recorded['training_data_hash']} of {recorded.get('data')}"
        yield Finding("OK", f"{noted}; its settings are not in this folder, so it is not compared")
        return
    face_set_class = getattr(deocc.data, name, None)
    if not (isinstance(face_set_class, type) and issubclass(face_set_class, deocc.data.FaceSet)):  # the name comes from a file
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
        return Finding("OK", f"training data: {number:,} images are too many to be read here; `deocc test` writes their fingerprint")
    found = faces.fingerprint("train")
    if found == recorded:
        return Finding("OK", f"training data: the run was trained on the people at hand (fingerprint {found})")
    said = f"training data: the fingerprint at hand is {found}, the run recorded {recorded}: other images, people, landmarks or splits"
    return Finding("warning", said, "give the data that it was trained on to --data, or train and test again")
