"""Callbacks and loggers: they draw and write from what a step returns and a module keeps."""

from deocc.callbacks.calibration import CalibrationCallback
from deocc.callbacks.loggers import MetricsLogger
from deocc.callbacks.panels import PanelCallback
from deocc.callbacks.perceptual import PerceptualCallback
from deocc.callbacks.predictions import PredictionCallback
from deocc.callbacks.results import ResultsCallback

__all__ = ["CalibrationCallback", "MetricsLogger", "PanelCallback", "PerceptualCallback", "PredictionCallback", "ResultsCallback"]
