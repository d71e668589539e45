"""A small model folder that a test may change."""

from pathlib import Path

import pytest

from deocc.inference.model_folder import face_contract, write_model
from deocc.inference.network import FaceNetwork


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A student of random weights without a de-occluder."""
    student = {
        "name": "dlib_resnet",
        "options": {},
        "student_input": "completed",
        "mask_channel": False,
        "embedding_dim": 128,
    }
    config = {
        "student": student,
        "teacher": "dlib_resnet",
        "bare_faces": None,
        "deoccluder": None,
        "face": face_contract(64),
        "thresholds": None,
    }
    write_model(tmp_path / "model", config, FaceNetwork(config), "a test's model")
    return tmp_path / "model"
