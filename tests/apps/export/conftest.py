"""Pipelines that nobody trained: small ones, and one of the real size with the packaged recogniser's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deocc.data import OrlFaces
from deocc.evaluation.calibration import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.inference.export import embedded_faces
from deocc.inference.model_folder import face_contract, write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.pipeline import Pipeline
from deocc.networks import create_embedder

SMALL_STUDENT = {
    "name": "timm/resnet10t",
    "options": {"size": 64},
    "student_input": "completed",
    "mask_channel": False,
    "embedding_dim": 16,
}
REAL_STUDENT = {
    "name": "dlib_resnet",
    "options": {},
    "student_input": "completed",
    "mask_channel": False,
    "embedding_dim": 128,
}
RATES = Rates(0.01, 0.05, 0.05, 180, 600, 4)


def make_pipeline(
    student: dict[str, Any], width: int | None, size: int, working: int | None = None, **face_set: Any
) -> Pipeline:
    """A pipeline of random weights from a fixed seed.

    Args:
        student: its configuration.
        width: of the generator; None = no de-occluder.
        size: of the crops.
        working: side that the de-occluder works at; None = that of the crops.
        face_set: arguments of `OrlFaces`.
    """
    deoccluder = None if width is None else {"generator": {"width": width}, "segmenter": {"width": 8}, "size": working}
    config = {"student": student, "deoccluder": deoccluder, "teacher": "dlib_resnet", "face": face_contract(size)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config)
        network.center.normal_(0, 0.1)
    rows: dict[str, tuple[Threshold, ...]] = {
        condition: (Threshold(0.01, 0.5, 0.25, RATES),) for condition in CONDITIONS
    }
    calibration = Calibration(
        rows, Separation(0.1, 0.0, 0.0), 0.2, size, "OrlFaces", OrlFaces(**face_set).fingerprint("val")
    )
    return Pipeline({**config, "thresholds": calibration.plain()}, network, calibration)


@pytest.fixture(scope="session")
def small() -> Pipeline:
    return make_pipeline(SMALL_STUDENT, 8, 64)


@pytest.fixture(scope="session")
def small_folder(small: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline as a model folder."""
    folder = tmp_path_factory.mktemp("export") / "model"
    training = {"training_data_hash": "0123", "data_hash": "4567"}
    write_model(
        folder,
        {**small.config, "training": training, "licences": {"teacher": "CC0", "data": "credit"}},
        small.network,
        "",
    )
    return folder


@pytest.fixture(scope="session")
def real() -> Pipeline:
    """The sizes of the default configuration, and dlib's own weights for the student."""
    pipeline = make_pipeline(REAL_STUDENT, 48, 112)
    pipeline.network.student.embedder.load_state_dict(create_embedder("dlib_resnet").state_dict())
    return pipeline


@pytest.fixture(scope="session")
def faces(small: Pipeline) -> torch.Tensor:
    """(5, 3, 64, 64): real faces, each under another occluder."""
    return embedded_faces(small, "val", 8).masked_face
