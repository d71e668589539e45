"""Cost of a test of stage 2 beside the forward passes of its networks: `python -m bench.testing`.

The packaged de-occluder, teacher and an untrained student test 320 JPEG photographs as `configs/lfw/distill.yaml` does:
one occluder per image, batches of 32, both sources of masks. Loading, alignment, rendering and scores are the rest.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from bench.loading import Photographs
from bench.measuring import Row, in_own_process
from deocc.data import MaskedFaceDataModule
from deocc.inference.model_folder import pretrained_folder
from deocc.modules import DistillationModule

PEOPLE = 8  # of the ORL set, 10 photographs each, in `COPIES` qualities
SETTINGS: dict[str, Any] = {
    "teacher_options": {"mirror": True},
    "student_input": "both",
    "mask_channel": True,
    "bare_faces": "teacher",
}


def measure_test_cost() -> Row:
    total, networks = in_own_process(seconds_of_test)
    what = "deocc test beside its networks' forward passes, CPU time"
    return {"what": what, "unit": "s", "ours": total, "reference": networks, "ratio": networks / total}


def seconds_of_test() -> tuple[float, float]:
    """Return the processor seconds of a whole test on one thread, and those within the networks."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        faces = Photographs(Path(folder))
        people = sorted(faces.split_of_identity)
        faces.split_of_identity = {person: "test" if person < PEOPLE else "train" for person in people}
        data = MaskedFaceDataModule(faces, size=192, eval_batch_size=32, mixed_kinds=True, test_seeds=[1])
        module: Any = DistillationModule(str(pretrained_folder()), **SETTINGS)
        spent: list[float] = []
        for network in (module.teacher, module.average, module.deoccluder.generator, module.deoccluder.segmenter):
            network.forward = timed(network, spent)
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder, barebones=False
        )
        start = time.process_time()
        trainer.test(module, data, verbose=False)
        return time.process_time() - start, sum(spent)


def timed(network: nn.Module, spent: list[float]) -> Callable[..., Any]:
    """Return the network's `forward`, which notes the processor seconds that it takes."""
    compute = network.forward

    def forward(*inputs: Any) -> Any:
        start = time.process_time()
        output = compute(*inputs)
        spent.append(time.process_time() - start)
        return output

    return forward


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description="Compare a test of stage 2 with its networks' forward passes.").parse_args(argv)
    row = measure_test_cost()
    print(
        f"{row['ours']:.1f} s, of which networks {row['reference']:.1f} s: {row['ours'] / row['reference']:.2f} times"
    )


if __name__ == "__main__":
    main()
