"""A tiny stage-2 run that was tested on its own people, and pipelines with random weights."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from deocc import runs
from deocc.data import MaskedFaceDataModule
from deocc.inference.export import embedded_faces
from deocc.inference.pipeline import Pipeline
from tests.conftest import SMALL, fewer_images, run_deocc
from tests.random_model import SMALL_STUDENT, make_pipeline
from tests.real_model import model, untested_model

__all__ = ["model", "untested_model"]

FEW = ["--data.kinds", "[surgical, sunglasses]", "--data.test_seeds", "[1]"]
CALLBACKS = (  # the opposite of the default order, which must not matter
    "deocc.callbacks.ModelFolderCallback",
    "deocc.callbacks.calibration.CalibrationCallback",
    "deocc.callbacks.ResultsCallback",
)


@pytest.fixture(scope="session")
def tested(stage2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder, with thresholds and model folder."""
    folder = tmp_path_factory.mktemp("tested") / "distill"
    shutil.copytree(stage2, folder)
    config = yaml.safe_load((folder / runs.CONFIG).read_text())
    config["trainer"]["callbacks"] = [{"class_path": name} for name in CALLBACKS]
    (folder / runs.CONFIG).write_text(yaml.safe_dump(config))
    with fewer_images():
        run_deocc("test", "--checkpoint", str(folder), *SMALL, *FEW)
    return folder


@pytest.fixture(scope="session")
def masked_faces() -> torch.Tensor:
    """(4, 3, 64, 64): faces of validation people, two under each of two kinds of occluder."""
    data = MaskedFaceDataModule(size=64, eval_batch_size=4, kinds=("surgical", "sunglasses"))
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader()[1])), 1)
    return batch["masked_face"]


@pytest.fixture(scope="session")
def small() -> Pipeline:
    return make_pipeline(SMALL_STUDENT, 8, 64)


@pytest.fixture(scope="session")
def faces(small: Pipeline) -> torch.Tensor:
    """(5, 3, 64, 64): real faces under different occluders."""
    return embedded_faces(small, "val", 8).masked_face
