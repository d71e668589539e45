"""Verification thresholds of a tested run: calibrated on validation people, measured on test people, in a file."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import Tensor

from deocc import runs
from deocc.evaluation import EmbeddingBank, EmbeddingSet, write_results
from deocc.evaluation.calibration import (
    CONDITIONS,
    Calibration,
    CountedPairs,
    calibrate,
    conditions,
    covered_share,
    least_visible,
    separate,
)
from deocc.evaluation.protocol import AllPairs

THRESHOLDS: Final = "thresholds"
"""The key of `Calibration.plain` in a thresholds file, in `results.json` and in a model folder's `config.json`."""

MEASURED_PAIRS: Final = 20_000_000
"""Maximum number of pairs of test people in a condition: all pairs of 4,400 images, about 2 GB of memory."""

_SHA256: Final = "checkpoint_sha256"
_GALLERY, _PROBE, _TEST_GALLERY = "gallery", "probe", "test gallery"


class CalibrationCallback(pl.Callback):
    """Calibrates the thresholds of a run that is tested on its own data, and writes them to `thresholds_path`.

    Clean and masked faces are embedded as photos are, with the predicted mask. Thresholds are chosen on all pairs of
    validation people and measured on all pairs of test people, whatever pairs the test's protocol lists: a list of
    1,500 pairs of two people cannot tell a false-accept rate of 1e-3. All processes embed; the first one calibrates and
    writes.
    """

    def __init__(self) -> None:
        self.embeddings: dict[str, EmbeddingSet] = {}
        self._calibration: Calibration | None = None

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Embed the validation faces and the clean test faces; the module has embedded the masked test faces."""
        self.embeddings, self._calibration = {}, None
        if checkpoint_of_own_test(trainer) is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders = dict(
            zip((_GALLERY, _PROBE, _TEST_GALLERY), (*data.val_dataloader(), data.test_dataloader()[0]), strict=True)
        )
        if min(len(loader.dataset) for loader in loaders.values()) < 2:
            warnings.warn(
                f"no thresholds: {type(data.face_set).__name__} has no validation faces to calibrate them on",
                stacklevel=2,
            )
            return
        self.embeddings = {name: _embed(pl_module, data, loader) for name, loader in loaders.items()}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrate, and write the thresholds."""
        checkpoint, calibration = checkpoint_of_own_test(trainer), self.calibration(trainer, pl_module)
        if checkpoint is None or calibration is None:
            return
        path = thresholds_path(checkpoint)
        try:
            write_thresholds(checkpoint, calibration)
        except OSError as error:
            warnings.warn(
                f"cannot write {path} ({error.strerror or error}): make it writable and test again", stacklevel=2
            )
        else:
            supported = ", ".join(f"{name} {len(calibration.thresholds[name])}" for name in CONDITIONS)
            print(f"thresholds: {path} (number of targets: {supported})", flush=True)

    def calibration(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Calibration | None:
        """The calibration after the test, computed by the first call; None in other processes or if impossible."""
        if self._calibration is None and self.embeddings and trainer.is_global_zero:
            tested: dict[str, EmbeddingSet] = pl_module.embeddings  # type: ignore[assignment]
            try:
                self._calibration = self._calibrate(trainer, tested)
            except ValueError as error:  # such as a student without a de-occluder, which predicts no masks
                warnings.warn(f"no thresholds: {error}", stacklevel=2)
                self.embeddings = {}
        return self._calibration

    def _calibrate(self, trainer: pl.Trainer, tested: dict[str, EmbeddingSet]) -> Calibration:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        validation = AllPairs().narrow({name: self.embeddings[name] for name in (_GALLERY, _PROBE)})
        measured = self._pairs_of_test_people(tested)
        pairs = conditions(validation[_GALLERY], validation[_PROBE])
        thresholds = {name: calibrate(counted, measured.get(name)) for name, counted in pairs.items()}
        covered = self.embeddings[_PROBE].coverage
        limit = separate(self.embeddings[_GALLERY].coverage, covered)
        name = type(data.face_set).__name__
        return Calibration(thresholds, limit, least_visible(covered), data.size, name, data.face_set.fingerprint("val"))

    def _pairs_of_test_people(self, tested: dict[str, EmbeddingSet]) -> dict[str, CountedPairs]:
        probe = tested.get("student_predicted_mask", tested.get("student"))
        if probe is None:
            return {}
        gallery = self.embeddings[_TEST_GALLERY]
        known = torch.isin(gallery.identity, probe.identity)  # a module may have kept some of the people only
        narrowed = AllPairs().narrow({_GALLERY: gallery.take(known), _PROBE: probe}, MEASURED_PAIRS)
        return conditions(narrowed[_GALLERY], narrowed[_PROBE])


def calibration_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Calibration | None:
    """The calibration of the test that has just ended, by the trainer's `CalibrationCallback` if it has one."""
    callbacks = [each for each in trainer.callbacks if isinstance(each, CalibrationCallback)]  # type: ignore[attr-defined]
    return callbacks[0].calibration(trainer, pl_module) if callbacks else None


def checkpoint_of_own_test(trainer: pl.Trainer) -> Path | None:
    """The checkpoint of a run that is tested on its own face set; None in any other test.

    Such a test writes to the run's folder or to one that contains it, as in `make demo`; a test on other faces writes
    to a folder of its own.
    """
    if not trainer.ckpt_path or getattr(trainer, "fast_dev_run", False):
        return None
    checkpoint = Path(trainer.ckpt_path)
    run, out = runs.run_folder_of(checkpoint).resolve(), Path(trainer.default_root_dir).resolve()
    trained_on = runs.face_set_of(run)[0]
    same = trained_on in (None, type(trainer.datamodule.face_set).__name__)  # type: ignore[attr-defined]
    return checkpoint if same and out in (run, *run.parents) and checkpoint.is_file() else None


def thresholds_path(checkpoint: Path) -> Path:
    """The thresholds file of a checkpoint: `last.thresholds.json` beside `last.ckpt`."""
    return checkpoint.with_suffix(".thresholds.json")


def write_thresholds(checkpoint: Path, calibration: Calibration) -> None:
    """Write the thresholds file of a checkpoint, completely or not at all. It holds the checkpoint's hash.

    Raises:
        OSError: it cannot be written.
    """
    write_results(thresholds_path(checkpoint), {_SHA256: _sha256(checkpoint), THRESHOLDS: calibration.plain()})


def read_thresholds(checkpoint: Path) -> Calibration | None:
    """The thresholds of a checkpoint; None where it was not tested, or trained further since, of which a warning tells.

    Raises:
        ValueError: the file is damaged.
    """
    path = thresholds_path(checkpoint)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        expected, calibration = content[_SHA256], Calibration.from_plain(content[THRESHOLDS])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}): write it again with `deocc test`"
        ) from error
    if expected != _sha256(checkpoint):
        warnings.warn(f"{path} is not used: {checkpoint.name} has changed since; run `deocc test` again", stacklevel=2)
        return None
    return calibration


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def _embed(module: Any, data: Any, loader: Iterable[Any]) -> EmbeddingSet:
    """Embed this process's share of a loader and gather all; coverage is that of the face by the predicted mask."""
    bank = EmbeddingBank()
    for batch in loader:
        moved = module.transfer_batch_to_device(batch, module.device, 0)
        masked = data.on_after_batch_transfer(moved, 0)
        predicted: dict[str, Tensor] = module.predict_step(masked, 0)
        ids = {name: masked[name] for name in ("identity", "index", "kind", "seed")}
        bank.update(predicted["embedding"], **ids, coverage=covered_share(predicted["mask"]))
    return bank.compute()
