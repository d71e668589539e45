"""A checkpoint says what it follows from, and whoever loads it is told where that is not what is at hand."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
import yaml

from deocc import runs
from deocc.callbacks.dashboard import without_secrets
from deocc.callbacks.mismatch import Action, Difference, compare, describe, refuse
from deocc.callbacks.provenance import Fingerprint, build

FINGERPRINT = "fingerprint"
"""The key of a checkpoint under which its `Fingerprint` lies."""


class FingerprintCallback(pl.Callback):
    """Puts a `Fingerprint` into every checkpoint, and compares that of a loaded one with the present state (`deocc.callbacks.mismatch`).

    A resumed training, a test, a validation and a prediction alike are refused where embeddings would mean something else, a resumed
    training also where it would become another one; anything else that differs is said in a line on the error stream.

    Args:
        mismatch: "refuse", or "warn" to go on whatever differs.

    Attributes:
        saved: what the loaded checkpoint says of itself; None where it says nothing, or none was loaded.
        differences: where the present state is not that.
    """

    def __init__(self, mismatch: Literal["refuse", "warn"] = "refuse") -> None:
        self.mismatch = mismatch
        self.saved: dict[str, Any] | None = None
        self.differences: list[Difference] = []
        self._present: Fingerprint | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the fingerprint of a training once, in the first process, before a strategy converts or moves the teacher's weights."""
        self.saved, self.differences, self._present = None, [], None
        if stage == "fit" and trainer.is_global_zero:
            self._present = _of_present_state(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the configuration, which is written by now."""
        if self._present is not None:
            self._present["config"] = _config(Path(trainer.default_root_dir) / runs.CONFIG)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the fingerprint of the training under `FINGERPRINT`."""
        if self._present is not None:
            checkpoint[FINGERPRINT] = self._present

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare; every process is told the same.

        Raises:
            ValueError: what must not differ does, and `mismatch` is "refuse".
        """
        action = cast(Action, str(trainer.state.fn and trainer.state.fn.value))
        saved = checkpoint.get(FINGERPRINT)
        self.saved = saved if isinstance(saved, dict) else None
        found: list[Difference] = []
        if trainer.is_global_zero:
            found = compare(self.saved, self._present or _of_present_state(trainer, pl_module), action)
        self.differences = trainer.strategy.broadcast(found)
        refused = [each for each in self.differences if each.severity == "refuse" and self.mismatch == "refuse"]
        if trainer.is_global_zero:
            for line in describe(each for each in self.differences if each not in refused):
                print(f"deocc: warning: {trainer.ckpt_path}: {line}", file=sys.stderr, flush=True)
        if refused:
            raise ValueError(f"{trainer.ckpt_path} does not fit: {refuse(refused)}")
        if self._present is not None:
            self._present["resumed"] = [*(self.saved or {}).get("resumed", []), *map(asdict, found)]

    def account(self) -> dict[str, Any]:
        """For results.json: the loaded checkpoint's fingerprint but its configuration, and the `differences`; None where it had none."""
        saved = None if self.saved is None else {key: value for key, value in self.saved.items() if key != "config"}
        return {"checkpoint": saved, "differences": [asdict(each) for each in self.differences]}


def _of_present_state(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Fingerprint:
    return build(trainer.datamodule, getattr(pl_module, "teacher", None))  # type: ignore[attr-defined]


def _config(path: Path) -> str | None:
    """The configuration as YAML, without secrets; None where a training was not started from one."""
    if not path.is_file():
        return None
    return str(yaml.safe_dump(without_secrets(yaml.safe_load(path.read_text(encoding="utf-8"))), sort_keys=False))
