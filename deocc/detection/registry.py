"""The detectors by name."""

import inspect
from typing import Any

from deocc.detection.detector import Detector
from deocc.detection.dlib import DlibCnnDetector, DlibHogDetector
from deocc.detection.mtcnn import MtcnnDetector
from deocc.detection.yunet import YunetDetector

_DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector for detector in (DlibHogDetector, DlibCnnDetector, MtcnnDetector, YunetDetector)
}


def list_detectors() -> tuple[str, ...]:
    """Return the names of all detectors."""
    return tuple(_DETECTORS)


def create_detector(name: str = "dlib", weights: str | None = None, **options: Any) -> Detector:
    """Create a face detector.

    Args:
        name: one of `list_detectors()`.
        weights: path of the weights file; None for the one in an installed package. "yunet" needs a path.
        options: further arguments of the detector's class.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: the detector or an option is unknown, or the weights are unusable; the message lists the choices.
    """
    if name not in _DETECTORS:
        raise ValueError(f"unknown face detector {name!r}: choose one of {', '.join(_DETECTORS)}")
    known = [option for option in inspect.signature(_DETECTORS[name]).parameters if option != "weights"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(
            f"face detector {name!r} has no option {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    return _DETECTORS[name](weights, **options)
