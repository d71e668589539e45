"""Train stage 2 for half an hour and watch memory and speed: `make soak`. Prints the thirds of the time, and writes nothing else.

A leak shows as memory that rises from third to third, a slow-down as rising seconds a step.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from deocc.cli import main

_FOREVER = 100_000


class Watch(pl.Callback):
    """Notes memory and time of every step, and ends the training when the time is over.

    Args:
        minutes: how long to train.
    """

    def __init__(self, minutes: float = 30.0) -> None:
        self.seconds = 60 * minutes
        self.steps: list[tuple[float, float]] = []
        self._begun = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._begun = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step."""
        self.steps.append((time.monotonic(), _resident()))
        trainer.should_stop = self.steps[-1][0] - self._begun > self.seconds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the figures of each third, the first minute left out."""
        steps = [step for step in self.steps if step[0] - self._begun > min(60.0, self.seconds / 10)]
        third = len(steps) // 3
        for number in range(3):
            part = steps[number * third : (number + 1) * third + 1]
            pace = statistics.median(later[0] - earlier[0] for earlier, later in itertools.pairwise(part))
            memory = statistics.median(step[1] for step in part)
            print(
                f"third {number + 1}: {len(part)} steps, median {pace:.3f} s a step, median {memory:.0f} MiB",
                flush=True,
            )


def _resident() -> float:
    """This process's memory in MiB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--config", default="configs/inpaint.yaml")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config", arguments.config, "--run", f"{folder}/run", "--trainer.max_epochs", str(_FOREVER)]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.callbacks+", "bench.soak.Watch"]
        main([*words, f"--trainer.callbacks.init_args.minutes={arguments.minutes}"])
    sys.exit(0)
