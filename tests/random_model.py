"""Pipelines with random weights: small ones, and one of the default size with dlib's own weights for the student."""

from typing import Any

import torch

from deocc.data import OrlFaces
from deocc.evaluation.thresholds import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.inference.model_folder import face_contract
from deocc.inference.network import FaceNetwork
from deocc.inference.pipeline import Pipeline
from deocc.networks import create_embedder

_INPUT = {"student_input": "completed", "mask_channel": False}
SMALL_STUDENT = {"name": "timm/resnet10t", "options": {"size": 64}, "embedding_dim": 16, **_INPUT}
DLIB_STUDENT = {"name": "dlib_resnet", "options": {}, "embedding_dim": 128, **_INPUT}


def dlib_config(size: int, with_deoccluder: bool, thresholds: Calibration | None = None) -> dict[str, Any]:
    """Return the configuration of a model folder with dlib's network, and with a small de-occluder or none."""
    small = {"generator": {"width": 8, "depth": 1, "attention": True}, "segmenter": {"width": 8}}
    return {
        "student": DLIB_STUDENT,
        "teacher": "dlib_resnet",
        "bare_faces": None,
        "deoccluder": small if with_deoccluder else None,
        "face": face_contract(size),
        "thresholds": None if thresholds is None else thresholds.plain(),
    }


def make_pipeline(
    student: dict[str, Any], width: int | None, size: int, deoccluder_size: int | None = None, **face_set: Any
) -> Pipeline:
    """Make a pipeline of random weights from a fixed seed.

    Args:
        student: configuration of the student.
        width: width of the generator; None = no de-occluder.
        size: side of the crops.
        deoccluder_size: side at which the de-occluder works; None = that of the crops.
        face_set: arguments of `OrlFaces`.
    """
    deoccluder = {"generator": {"width": width}, "segmenter": {"width": 8}, "size": deoccluder_size}
    config = {
        "student": student,
        "deoccluder": None if width is None else deoccluder,
        "teacher": "dlib_resnet",
        "bare_faces": None,
        "face": face_contract(size),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config)
        network.center.normal_(0, 0.1)
    threshold = Threshold(0.01, 0.5, 0.25, Rates(0.01, 0.05, 0.05, 180, 600, 4))
    rows: dict[str, tuple[Threshold, ...]] = dict.fromkeys(CONDITIONS, (threshold,))
    fingerprint = OrlFaces(**face_set).fingerprint("val")
    calibration = Calibration(rows, Separation(0.1, 0.0, 0.0), 0.2, size, "OrlFaces", fingerprint)
    return Pipeline({**config, "thresholds": calibration.plain()}, network, calibration)


def make_dlib_pipeline(width: int) -> Pipeline:
    """Make a pipeline of the default crop size with dlib's own weights for the student."""
    pipeline = make_pipeline(DLIB_STUDENT, width, 112)
    pipeline.network.student.embedder.load_state_dict(create_embedder("dlib_resnet").state_dict())
    return pipeline
