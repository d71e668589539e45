"""Face detectors with five landmarks. NumPy arrays in and out; torch is only imported by the detector that needs it."""

from deocc.detection.detector import Detection, Detector
from deocc.detection.dlib import DlibCnnDetector, DlibDetector
from deocc.detection.mtcnn import MtcnnDetector
from deocc.detection.yunet import YunetDetector

__all__ = ["Detection", "Detector", "create_detector", "list_detectors"]

_DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector for detector in (DlibDetector, DlibCnnDetector, MtcnnDetector, YunetDetector)
}


def list_detectors() -> tuple[str, ...]:
    """Return the names of all detectors."""
    return tuple(_DETECTORS)


def create_detector(name: str, weights: str | None = None) -> Detector:
    """Create a face detector.

    Args:
        name: one of `list_detectors()`.
        weights: path of the weights file; None for the one in an installed package. "yunet" needs a path.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: the detector is unknown, or the weights are damaged or of another detector.
    """
    if name not in _DETECTORS:
        raise ValueError(f"unknown face detector {name!r}: choose one of {', '.join(_DETECTORS)}")
    return _DETECTORS[name](weights)
