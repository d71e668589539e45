"""Shared by tests of several packages: the command line, run in this process, and small trained runs of each stage."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The suite runs one process per core, in which a second thread would only wait. OpenMP reads these when torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["DEOCC_BFLOAT16"] = "0"  # equal figures on all processors; tests of bfloat16 turn it on

import numpy as np
import pytest
import torch
from PIL import Image

import deocc._torchvision  # noqa: F401  # before Lightning
from deocc.cli import main
from deocc.detection import Detector, create_detector

# Typing caches the first of Union[int, float] and Union[float, int] for both: Lightning's must precede scikit-learn's.
import pytorch_lightning  # isort: skip  # noqa: F401

ROOT = Path(__file__).parent.parent
SMALL = [
    "--data.size",
    "64",
    "--data.batch_size",
    "4",
    "--data.eval_batch_size",
    "8",
    "--trainer.enable_progress_bar",
    "false",
]
TINY_STAGE1 = [
    f"--model.init_args.{name}={value}"
    for name, value in {"width": 8, "discriminator_width": 8, "segmenter_width": 8}.items()
]
ONE_STEP = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]
ONE_STEP += ["--trainer.log_every_n_steps", "1"]

Run = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Small tensors are not worth a second thread, and results must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Detected landmarks of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEOCC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def dlib_detector() -> Detector:
    """dlib's detector, whose 100 MB of weights take more than a second to read, once for all tests of a process."""
    pytest.importorskip("dlib")
    return create_detector("dlib")


def run_deocc(*words: str) -> None:
    """Run `deocc` in this process, from the repository's root, as a person would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about loaders without workers and logging intervals
        main(list(words))


@contextmanager
def fewer_images() -> Iterator[None]:
    """Test on every fifth image, two of each person; validation is unchanged."""
    from deocc.data import MaskedFaceDataModule  # here, since Lightning must be imported first

    chosen = MaskedFaceDataModule._chosen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MaskedFaceDataModule,
            "_chosen",
            lambda self, split, indices: chosen(self, split, indices)[:: 5 if split == "test" else 1],
        )
        yield


def draw_folder(root: Path) -> Path:
    """A `person/image` tree of noise, as `deocc.data.FolderFaces` reads it."""
    generator = np.random.default_rng(0)
    for person in range(12):
        for image in range(2):
            path = root / f"person{person}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny stage 1, trained for a step on real faces."""
    folder = tmp_path_factory.mktemp("runs") / "inpaint"
    run_deocc(
        "fit", "--config", str(ROOT / "configs/inpaint.yaml"), "--run", str(folder), *SMALL, *TINY_STAGE1, *ONE_STEP
    )
    return folder


@pytest.fixture(scope="session")
def stage2(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a stage 2 trained for a step on top of `stage1`."""
    folder = tmp_path_factory.mktemp("runs") / "distill"
    chosen = ["--model.init_args.inpainting_checkpoint", str(stage1)]
    run_deocc("fit", "--config", str(ROOT / "configs/distill.yaml"), "--run", str(folder), *SMALL, *chosen, *ONE_STEP)
    return folder
