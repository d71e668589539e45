"""A small model folder that a test may change."""

from pathlib import Path

import pytest

from deocc.inference.model_folder import write_model
from deocc.inference.network import FaceNetwork
from tests.random_model import dlib_config


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A student of random weights without a de-occluder."""
    config = dlib_config(64, False)
    write_model(tmp_path / "model", config, FaceNetwork(config), "a test's model")
    return tmp_path / "model"
