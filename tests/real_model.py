"""A model that recognises real faces without training: dlib's network behind a de-occluder that predicts no mask."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from deocc.data import OrlFaces
from deocc.detection import Detector, create_detector
from deocc.evaluation.thresholds import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.geometry import align
from deocc.inference import faces
from deocc.inference.model_folder import load, write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.pipeline import Pipeline
from deocc.networks import Deoccluder, create_embedder
from tests.random_model import dlib_config

SIZE = 112
SAME, DIFFERENT = 0.7, 0.6
TESTED = 0.03
VALIDATION_RATES, TEST_RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10), Rates(TESTED, 0.3, 0.1, 9, 90, 5)
_MEAN_OF = [0, 57, 113, 171, 229, 287, 345]  # faces of seven people


def calibration() -> Calibration:
    """Limits 0.7 and 0.6, 0.1 less for each masked face; masked from 30 % covered, undecided from 80 %."""
    rows: dict[str, tuple[Threshold, ...]] = {
        name: (Threshold(1e-2, SAME - number / 10, DIFFERENT - number / 10, VALIDATION_RATES, TEST_RATES),)
        for number, name in enumerate(CONDITIONS)
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.2, SIZE, "Faces", "0")


@torch.no_grad()
def _write(folder: Path, thresholds: Calibration | None) -> Path:
    config = dlib_config(SIZE, True, thresholds)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config)
    network.student.embedder = create_embedder("dlib_resnet")
    assert network.deoccluder is not None
    last = cast(nn.Conv2d, network.deoccluder.segmenter.to_logits[0])
    nn.init.zeros_(last.weight)
    nn.init.constant_(cast(Tensor, last.bias), -10.0)
    orl = OrlFaces()
    crops = torch.stack([align(orl.image(index), orl.landmarks[index], SIZE)[0] for index in _MEAN_OF])
    # Embeddings of different people are too similar unless they lose part of their mean.
    network.center.copy_(network.student(crops, crops, crops[:, :1] * 0).mean(0))
    write_model(folder, config, network, "a test's model")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder."""
    return _write(tmp_path_factory.mktemp("real") / "model", calibration())


@pytest.fixture(scope="session")
def untested_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder without thresholds."""
    return _write(tmp_path_factory.mktemp("untested") / "model", None)


@pytest.fixture
def pipeline(model: Path) -> Pipeline:
    return load(model)


@pytest.fixture
def shared_detector(dlib_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the 100 MB of dlib's detector only once for all commands."""

    def create(name: str, weights: str | None = None) -> Detector:
        return dlib_detector if (name, weights) == ("dlib", None) else create_detector(name, weights)

    monkeypatch.setattr(faces, "create_detector", create)


def cover(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Make the model predict a mask from this share of the crop's height downward."""

    def predict(_: Deoccluder, face: Tensor) -> Tensor:
        mask = torch.zeros_like(face[:, :1])
        mask[:, :, round(share * face.shape[2]) :] = 1
        return mask

    monkeypatch.setattr(Deoccluder, "predict_mask", predict)
