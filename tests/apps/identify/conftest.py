"""The model and the detector of these tests."""

from tests.apps.real_model import detector, model, pipeline, read_once, untested_model

__all__ = ["detector", "model", "pipeline", "read_once", "untested_model"]
