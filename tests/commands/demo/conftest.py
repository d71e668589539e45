"""A small model with random weights and thresholds, and two photos with the faces found in them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import deocc
from deocc.commands.demo_analysis import OrlGallery
from deocc.data import OrlFaces
from deocc.evaluation.thresholds import CONDITIONS, Calibration, Rates, Separation, Threshold
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.model_folder import write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from tests.random_model import dlib_config

SIZE = 64
RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10)


def calibration() -> Calibration:
    """Thresholds of 0.6 and 0.4 for clean faces, 0.1 less for each masked face."""
    rows: dict[str, tuple[Threshold, ...]] = {
        name: (Threshold(1e-2, 0.6 - number / 10, 0.4 - number / 10, RATES),) for number, name in enumerate(CONDITIONS)
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.0, SIZE, "Faces", "0")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    config = dlib_config(SIZE, True, calibration())
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_model(folder, config, FaceNetwork(config), "a test's model")
    return folder


@pytest.fixture
def pipeline(model: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The model with bright pixels as its predicted mask; random weights would cover everything or nothing."""
    loaded: Pipeline = deocc.load(model)
    monkeypatch.setattr(
        loaded.network.deoccluder, "predict_mask", lambda face: (face.mean(1, keepdim=True) > 0).float()
    )
    return loaded


@pytest.fixture
def gallery(pipeline: Pipeline) -> OrlGallery:
    return OrlGallery(pipeline)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos of two people."""
    folder = tmp_path_factory.mktemp("photos")
    faces = OrlFaces()
    for number, index in enumerate((0, 220)):
        picture = Image.fromarray(faces.image(index))
        picture.resize((4 * picture.width, 4 * picture.height)).convert("RGB").save(folder / f"{number}.png")
    return folder / "0.png", folder / "1.png"


@pytest.fixture(scope="session")
def finder() -> FaceFinder:
    return FaceFinder(SIZE)


@pytest.fixture(scope="session")
def faces(photos: tuple[Path, Path], finder: FaceFinder) -> tuple[PhotoFace, PhotoFace]:
    """The faces of both photos."""
    first, second = (finder.find(read_photo(path))[0] for path in photos)
    return first, second
