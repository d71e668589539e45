"""A small model of random weights with thresholds, as an object and as a folder, and what finds faces."""

from pathlib import Path

import pytest
import torch

import deocc
from deocc.commands.demo.analysis import OrlGallery
from deocc.evaluation.calibration import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.model_folder import face_contract, write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from tests.apps.photos.scenes import ONE, Pasted, draw_scene

SIZE = 64
RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10)


def calibration() -> Calibration:
    """0.6 and 0.4 for clean faces, 0.1 less for each masked one."""
    rows = {
        name: (Threshold(1e-2, 0.6 - number / 10, 0.4 - number / 10, RATES),) for number, name in enumerate(CONDITIONS)
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.0, SIZE, "Faces", "0")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
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
        "thresholds": calibration().plain(),
    }
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_model(folder, config, FaceNetwork(config), "a test's model")
    return folder


@pytest.fixture
def pipeline(model: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The model, loaded; what it takes for covered is what is bright, since random weights would cover all or nothing."""
    loaded = deocc.load(model)
    monkeypatch.setattr(
        loaded.network.deoccluder, "predict_mask", lambda face: (face.mean(1, keepdim=True) > 0).float()
    )
    return loaded


@pytest.fixture
def gallery(pipeline: Pipeline) -> OrlGallery:
    return OrlGallery(pipeline)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two photos, of two people."""
    folder = tmp_path_factory.mktemp("photos")
    for number, face in enumerate((ONE[0], Pasted(22, 200, 40, 250))):
        draw_scene([face]).save(folder / f"{number}.png")
    return folder / "0.png", folder / "1.png"


@pytest.fixture(scope="session")
def finder() -> FaceFinder:
    return FaceFinder(SIZE)


@pytest.fixture(scope="session")
def faces(photos: tuple[Path, Path], finder: FaceFinder) -> tuple[PhotoFace, PhotoFace]:
    """The faces of both."""
    first, second = (finder.find(read_photo(path))[0] for path in photos)
    return first, second
