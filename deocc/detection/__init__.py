"""Where faces lie in a photograph, with five landmarks each: NumPy in, NumPy out, no torch."""

from deocc.detection.detector import Detection, Detector
from deocc.detection.registry import create_detector, list_detectors

__all__ = ["Detection", "Detector", "create_detector", "list_detectors"]
