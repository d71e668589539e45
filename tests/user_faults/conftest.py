"""A model that recognises real faces."""

from tests.real_model import model, pipeline, shared_detector

__all__ = ["model", "pipeline", "shared_detector"]
