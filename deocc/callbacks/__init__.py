"""Callbacks and loggers: they draw and write from what a step returns and a module keeps."""

from deocc.callbacks.calibration import CalibrationCallback
from deocc.callbacks.checkpoints import CheckpointCallback
from deocc.callbacks.fingerprint import FingerprintCallback
from deocc.callbacks.finite import FiniteCallback
from deocc.callbacks.loggers import MetricsLogger
from deocc.callbacks.panels import PanelCallback
from deocc.callbacks.perceptual import PerceptualCallback
from deocc.callbacks.predictions import PredictionCallback
from deocc.callbacks.quarantine import QuarantineCallback
from deocc.callbacks.results import ResultsCallback

__all__ = [
    "CalibrationCallback",
    "CheckpointCallback",
    "FingerprintCallback",
    "FiniteCallback",
    "MetricsLogger",
    "PanelCallback",
    "PerceptualCallback",
    "PredictionCallback",
    "QuarantineCallback",
    "ResultsCallback",
]
