"""Training images per second of the data loader, aligned on the fly or read from the cache, compared with the step."""

import os
import time
import warnings
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.measuring import Row, in_own_process
from bench.training import read_setting
from deocc.data import FaceSet, MaskedFaceDataModule, OrlFaces
from deocc.data.dataset import Augmentation, TrainingFaces
from deocc.data.images import read_image

WIDTH, HEIGHT = 178, 218  # CelebA's aligned photographs
COPIES = 4  # photographs per face, so that the set does not fit into memory
WARM_UP, BATCHES, AUGMENTED = 4, 16, 256  # batches before the timed ones, timed batches, timed crops


class Photographs(FaceSet):
    """The ORL faces as JPEG files of CelebA's size, each in several qualities."""

    credit = OrlFaces.credit

    def __init__(self, root: Path) -> None:
        faces = OrlFaces()
        self.paths = [root / f"{number:05d}.jpg" for number in range(len(faces) * COPIES)]
        self.names = [path.name for path in self.paths]
        self.landmarks = np.tile((faces.landmarks + 0.5) * [WIDTH / 92, HEIGHT / 112] - 0.5, (COPIES, 1, 1))
        self.identity = np.tile(faces.identity, COPIES)
        self.split_of_identity = dict.fromkeys(faces.identity.tolist(), "train")
        for number, path in enumerate(self.paths):
            if not path.exists():
                copy, index = divmod(number, len(faces))
                Image.fromarray(faces.image(index)).resize((WIDTH, HEIGHT)).save(path, quality=95 - copy)

    def image(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.paths[index])

    def content(self, index: int) -> bytes:
        """Return the file's size and name, as CelebA does."""
        return f"{self.paths[index].stat().st_size} {self.names[index]}".encode()


def compare_loading(step_rate: float) -> list[Row]:
    """Return rows for 0 and 1 workers with the data settings of `configs/distill.yaml`, which blend three faces.

    Args:
        step_rate: images per second of that configuration's training step on prepared batches (`bench.training`).
    """
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for workers, name in enumerate(("0 workers", "1 worker")):
            aligned, cached, augmentation, filling = in_own_process(rates, Path(folder), workers)
            rows.append(
                {
                    "what": f"loading with {name}, cache against alignment on the fly",
                    "unit": "images/s",
                    "ours": cached,
                    "reference": aligned,
                    "ratio": cached / aligned,
                    "details": {
                        "step": step_rate,
                        "times_the_step": cached / step_rate,
                        "augmentation_share": cached / max(1, workers) / augmentation,
                        "filling": filling,
                    },
                }
            )
    return rows


def rates(folder: Path, workers: int) -> tuple[float, float, float, float]:
    """Measure the loader with `workers` workers; files are left in the folder.

    Returns:
        Images per second: aligned on the fly, read from the cache, augmented only, written to the cache.
    """
    warnings.filterwarnings("ignore", module="torch")  # more workers than cores
    torch.set_num_threads(1)  # like a worker
    (folder / "photographs").mkdir(exist_ok=True)
    faces, settings = Photographs(folder / "photographs"), {**read_setting("distill").data, "num_workers": workers}
    os.environ["DEOCC_CACHE"] = str(folder / f"cache{workers}")  # this process only measures
    module = MaskedFaceDataModule(faces, **settings)
    uncached = MaskedFaceDataModule(faces, **{**settings, "cache_gigabytes": 0})
    start = time.perf_counter()
    module.prepare_data()
    filling = len(faces) / (time.perf_counter() - start)
    return _delivered(uncached), _delivered(module), _augmented(module), filling


def _delivered(module: MaskedFaceDataModule) -> float:
    """Measure `BATCHES` batches after a warm-up, in which the workers start and use up their prefetched batches."""
    batches = iter(module.train_dataloader())
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    images = sum(len(batch["face"]) for batch in islice(batches, BATCHES))
    return images / (time.perf_counter() - start)


def _augmented(module: MaskedFaceDataModule) -> float:
    dataset, augmentation = cast(TrainingFaces, module.train_dataloader().dataset), Augmentation(module.augmentation)
    crops = [dataset.aligned(index) for index in range(32)]
    start = time.perf_counter()
    for seed, crop in enumerate(islice(cycle(crops), AUGMENTED)):
        augmentation(*crop, seed)
    return AUGMENTED / (time.perf_counter() - start)
