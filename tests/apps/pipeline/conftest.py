"""A tiny stage 2, tested on its own people with the callbacks that calibrate it and write its model folder."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from deocc import runs
from deocc.data import MaskedFaceDataModule
from tests.conftest import SMALL, run_deocc

FEW = ["--data.kinds", "[surgical, sunglasses]", "--data.test_seeds", "[1]", "--trainer.limit_test_batches", "4"]
CALLBACKS = (
    "deocc.callbacks.ResultsCallback",
    "deocc.callbacks.calibration.CalibrationCallback",
    "deocc.inference.model_folder.ModelFolderCallback",
)


@pytest.fixture(scope="session")
def tested(stage2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder."""
    folder = tmp_path_factory.mktemp("tested") / "distill"
    shutil.copytree(stage2, folder)
    config = yaml.safe_load((folder / runs.CONFIG).read_text())
    config["trainer"]["callbacks"] = [{"class_path": name} for name in CALLBACKS]
    (folder / runs.CONFIG).write_text(yaml.safe_dump(config))
    run_deocc("test", "--checkpoint", str(folder), *SMALL, *FEW)
    return folder


@pytest.fixture(scope="session")
def masked_faces() -> torch.Tensor:
    """(4, 3, 64, 64): real faces of validation people, two under each of two kinds of occluder."""
    data = MaskedFaceDataModule(size=64, eval_batch_size=4, kinds=("surgical", "sunglasses"))
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader()[1])), 1)
    return batch["masked_face"]
