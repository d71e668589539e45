"""The thresholds of a tested run: calibrated on the validation people, tried on the test people, kept in the checkpoint."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from deocc import runs
from deocc.evaluation import EmbeddingBank, EmbeddingSet
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
from deocc.networks.weights import read_checkpoint

THRESHOLDS = "thresholds"
"""The key of a checkpoint under which `deocc.evaluation.calibration.Calibration.plain` lies."""

_GALLERY, _PROBE, _TEST_GALLERY = "gallery", "probe", "test gallery"


class CalibrationCallback(pl.Callback):
    """Writes the thresholds into the tested checkpoint, in place of earlier ones, where a run is tested on its own data.

    Clean and masked faces are embedded as photographs are: by the predicted mask. The processes share the work.
    """

    def __init__(self) -> None:
        self.embeddings: dict[str, EmbeddingSet] = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Embed the validation people, and the clean faces of the test people, whose masked ones the module has embedded."""
        self.embeddings = {}
        if checkpoint_of_own_test(trainer) is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders = dict(zip((_GALLERY, _PROBE, _TEST_GALLERY), (*data.val_dataloader(), data.test_dataloader()[0]), strict=True))
        if min(len(loader.dataset) for loader in loaders.values()) < 2:
            warnings.warn(f"no thresholds: {type(data.face_set).__name__} has no validation faces to calibrate them on", stacklevel=2)
            return
        self.embeddings = {name: _embed(pl_module, data, loader) for name, loader in loaders.items()}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrate, and write the outcome down."""
        checkpoint = checkpoint_of_own_test(trainer)
        if checkpoint is None or not trainer.is_global_zero or not self.embeddings:
            return
        try:
            calibration = self._calibrate(trainer, cast(Any, pl_module).embeddings)
        except ValueError as error:  # such as a student without a de-occluder, which predicts no masks
            warnings.warn(f"no thresholds: {error}", stacklevel=2)
            return
        supported = ", ".join(f"{name} {len(calibration.thresholds[name])}" for name in CONDITIONS)
        try:
            put_into_checkpoint(checkpoint, THRESHOLDS, calibration.plain())
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"cannot keep the thresholds in {checkpoint} ({reason}): make it writable and test again", stacklevel=2)
        else:
            print(f"thresholds: in {checkpoint}, so many a condition: {supported}", flush=True)

    def _calibrate(self, trainer: pl.Trainer, tested: dict[str, EmbeddingSet]) -> Calibration:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        narrowed = AllPairs().narrow({name: self.embeddings[name] for name in (_GALLERY, _PROBE)})
        gallery, probe = narrowed[_GALLERY], narrowed[_PROBE]
        probe_of_test = tested.get("student_predicted_mask", tested.get("student"))
        tries: dict[str, CountedPairs] = {}
        if probe_of_test is not None:
            known = torch.isin(self.embeddings[_TEST_GALLERY].identity, probe_of_test.identity)
            tries = conditions(self.embeddings[_TEST_GALLERY].take(known), probe_of_test, data.protocol)
        thresholds = {name: calibrate(counted, tries.get(name)) for name, counted in conditions(gallery, probe).items()}
        covered = self.embeddings[_PROBE].coverage
        limit = separate(self.embeddings[_GALLERY].coverage, covered)
        name = type(data.face_set).__name__
        return Calibration(thresholds, limit, least_visible(covered), data.size, name, data.face_set.fingerprint("val"))


def checkpoint_of_own_test(trainer: pl.Trainer) -> Path | None:
    """The checkpoint file of a run that is tested on its own faces, so that what is found belongs to it; None in any other test.

    Such a test writes into the run's folder or one around it, as `make demo` does; one on other faces writes into a folder of its own.
    """
    if not trainer.ckpt_path or getattr(trainer, "fast_dev_run", False):
        return None
    checkpoint = Path(trainer.ckpt_path)
    run, out = runs.run_folder_of(checkpoint).resolve(), Path(trainer.default_root_dir).resolve()
    trained_on = runs.face_set_of(run)[0]
    same = trained_on in (None, type(trainer.datamodule.face_set).__name__)  # type: ignore[attr-defined]
    return checkpoint if same and out in (run, *run.parents) and checkpoint.is_file() else None


def put_into_checkpoint(path: Path, key: str, value: Any) -> None:
    """Add or replace one entry of a checkpoint file, whole or not at all; its age stays, by which the best of several is found.

    Raises:
        OSError: the file cannot be written.
        ValueError: it is no checkpoint.
    """
    content = {**read_checkpoint(path), key: value}
    status = path.stat()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, draft)
        os.utime(draft, ns=(status.st_atime_ns, status.st_mtime_ns))
        draft.chmod(status.st_mode)
        draft.replace(path)
    except RuntimeError as error:  # what torch makes of a full disk or a folder that may not be written to
        raise OSError(" ".join(str(error).split())[:120]) from error
    finally:
        draft.unlink(missing_ok=True)


@torch.no_grad()
def _embed(module: Any, data: Any, loader: Iterable[Any]) -> EmbeddingSet:
    """This process's share of the loader, gathered from all; the coverage is that of the face by the predicted mask."""
    bank = EmbeddingBank()
    for batch in loader:
        moved = module.transfer_batch_to_device(batch, module.device, 0)
        masked = data.on_after_batch_transfer(moved, 0)
        predicted: dict[str, Tensor] = module.predict_step(masked, 0)
        ids = {name: masked[name] for name in ("identity", "index", "kind", "seed")}
        bank.update(predicted["embedding"], **ids, coverage=covered_share(predicted["mask"]))
    return bank.compute()
