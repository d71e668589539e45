"""Callbacks and loggers: they draw and write from what a step returns and a module keeps."""

import deocc._torchvision  # noqa: F401  # before Lightning
from deocc.callbacks.calibration import CalibrationCallback, ModelFolderCallback
from deocc.callbacks.checkpoints import CheckpointCallback
from deocc.callbacks.faults import FiniteCallback, QuarantineCallback
from deocc.callbacks.judges import JudgeCallback, PerceptualCallback
from deocc.callbacks.loggers import MetricsLogger
from deocc.callbacks.panels import PanelCallback, PredictionCallback
from deocc.callbacks.provenance import FingerprintCallback
from deocc.callbacks.results import ResultsCallback
from deocc.callbacks.shared_outputs import SharedOutputsCallback

__all__ = [
    "CalibrationCallback",
    "CheckpointCallback",
    "FingerprintCallback",
    "FiniteCallback",
    "JudgeCallback",
    "MetricsLogger",
    "ModelFolderCallback",
    "PanelCallback",
    "PerceptualCallback",
    "PredictionCallback",
    "QuarantineCallback",
    "ResultsCallback",
    "SharedOutputsCallback",
]
