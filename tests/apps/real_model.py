"""A model that recognises real faces without having been trained: dlib's network behind a de-occluder that sees nothing covered."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from deocc.data import OrlFaces
from deocc.detection import Detector, create_detector
from deocc.evaluation.calibration import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.geometry import align
from deocc.inference import faces
from deocc.inference.model_folder import face_contract, load, write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.pipeline import Pipeline
from deocc.networks import Deoccluder, create_embedder

SIZE = 112
SAME, DIFFERENT = 0.5, 0.4
TESTED = 0.03
_VALIDATION, _TEST = Rates(0.01, 0.2, 0.05, 100, 1000, 10), Rates(TESTED, 0.3, 0.1, 9, 90, 5)
_MEAN_OF = [0, 57, 113, 171, 229, 287, 345]  # faces of seven people


def calibration() -> Calibration:
    """0.5 and 0.4 of clean faces, 0.1 less for each masked one; from 30 % covered on a face is masked, from 80 % on nothing is decided."""
    rows: dict[str, tuple[Threshold, ...]] = {
        name: (Threshold(1e-2, SAME - number / 10, DIFFERENT - number / 10, _VALIDATION, _TEST),)
        for number, name in enumerate(CONDITIONS)
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.2, SIZE, "Faces", "0")


def _write(folder: Path, known: Calibration | None) -> Path:
    student = {
        "name": "dlib_resnet",
        "options": {},
        "student_input": "completed",
        "mask_channel": False,
        "embedding_dim": 128,
    }
    generator = {"width": 8, "depth": 1, "attention": True}
    config = {
        "student": student,
        "teacher": "dlib_resnet",
        "deoccluder": {"generator": generator, "segmenter": {"width": 8}},
        "face": face_contract(SIZE),
        "thresholds": None if known is None else known.plain(),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config)
    network.student.embedder = create_embedder("dlib_resnet")
    assert network.deoccluder is not None
    last = cast(nn.Conv2d, network.deoccluder.segmenter.to_logits[0])
    nn.init.zeros_(last.weight)
    nn.init.constant_(cast(Tensor, last.bias), -10.0)
    network.center.copy_(_mean(network))
    write_model(folder, config, network, "a test's model")
    return folder


@torch.no_grad()
def _mean(network: FaceNetwork) -> Tensor:
    """Of raw embeddings: different people's are squeezed together without it."""
    orl = OrlFaces()
    crops = torch.stack([align(orl.image(index), orl.landmarks[index], SIZE)[0] for index in _MEAN_OF])
    embeddings: Tensor = network.student(crops, crops, crops[:, :1] * 0)
    return embeddings.mean(0)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    return _write(tmp_path_factory.mktemp("real") / "model", calibration())


@pytest.fixture(scope="session")
def untested_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without thresholds."""
    return _write(tmp_path_factory.mktemp("untested") / "model", None)


@pytest.fixture
def pipeline(model: Path) -> Pipeline:
    return load(model)


@pytest.fixture(scope="session")
def detector(dlib_detector: Detector) -> Detector:
    return dlib_detector


@pytest.fixture(autouse=True)
def read_once(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector's 100 MB of weights are not read for every command."""

    def create(name: str, weights: str | None = None) -> Detector:
        return detector if (name, weights) == ("dlib", None) else create_detector(name, weights)

    monkeypatch.setattr(faces, "create_detector", create)


def cover(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """From now on every face is seen as covered from this share of the crop's height downward."""

    def predict(_: Deoccluder, face: Tensor) -> Tensor:
        mask = torch.zeros_like(face[:, :1])
        mask[:, :, round(share * face.shape[2]) :] = 1
        return mask

    monkeypatch.setattr(Deoccluder, "predict_mask", predict)
