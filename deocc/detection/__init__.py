"""Face detectors with five landmarks. NumPy arrays in and out; torch is only imported by the detector that needs it."""

from deocc.detection.detector import Detection, Detector
from deocc.detection.registry import create_detector, list_detectors

__all__ = ["Detection", "Detector", "create_detector", "list_detectors"]
