"""Train for half an hour and watch memory and speed: `make soak`.

Prints the figures of each third of the time. A leak shows as rising memory, a slow-down as rising seconds per step.
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
    """Records memory and time of every step and stops the training after `minutes`."""

    def __init__(self, minutes: float = 30.0) -> None:
        self.seconds = 60 * minutes
        self.steps: list[tuple[float, float]] = []
        self._begun = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.append((time.monotonic(), _resident()))
        trainer.should_stop = self.steps[-1][0] - self._begun > self.seconds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the figures of each third, without the first minute."""
        steps = [step for step in self.steps if step[0] - self._begun > min(60.0, self.seconds / 10)]
        third = len(steps) // 3
        for number in range(3):
            part = steps[number * third : (number + 1) * third + 1]
            pace = statistics.median(later[0] - earlier[0] for earlier, later in itertools.pairwise(part))
            memory = statistics.median(step[1] for step in part)
            print(
                f"third {number + 1}: {len(part)} steps, median {pace:.3f} s per step, median {memory:.0f} MiB",
                flush=True,
            )


def _resident() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--config", default="configs/inpaint.yaml")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        argv = ["fit", "--config", arguments.config, "--run", f"{folder}/run", "--trainer.max_epochs", str(_FOREVER)]
        argv += ["--trainer.enable_progress_bar", "false", "--trainer.callbacks+", "bench.soak.Watch"]
        main([*argv, f"--trainer.callbacks.init_args.minutes={arguments.minutes}"])
    sys.exit(0)
