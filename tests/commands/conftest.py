"""A model that recognises real faces, and one with random weights, as model folders."""

from pathlib import Path

import pytest

from deocc.inference.model_folder import write_model
from deocc.inference.pipeline import Pipeline
from tests.random_model import SMALL_STUDENT, make_pipeline
from tests.real_model import model, pipeline, shared_detector, untested_model

__all__ = ["model", "pipeline", "shared_detector", "untested_model"]


@pytest.fixture(scope="session")
def small() -> Pipeline:
    return make_pipeline(SMALL_STUDENT, 8, 64)


@pytest.fixture(scope="session")
def small_folder(small: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline as a model folder."""
    folder = tmp_path_factory.mktemp("export") / "model"
    training = {"training_data_hash": "0123", "data_hash": "4567"}
    config = {**small.config, "training": training, "licences": {"teacher": "CC0", "data": "credit"}}
    write_model(folder, config, small.network, "")
    return folder
