"""Verification thresholds and the model folder, which a test of a run on its own data adds to the run."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from deocc import runs
from deocc.callbacks.dashboards import continue_without
from deocc.evaluation import thresholds
from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.files import checksum
from deocc.inference.model_card import licences, model_card, training_facts
from deocc.inference.model_folder import FOLDER, load, write_model

# Maximum number of pairs of test identities per condition: all pairs of 4,400 images, about 2 GB of memory
MEASURED_PAIRS: Final = 20_000_000
_logger = logging.getLogger(__name__)


class CalibrationCallback(pl.Callback):
    """Calibrate the thresholds of a run that is tested on its own data, and write them beside the checkpoint.

    Clean and masked faces are embedded like photos, with the predicted mask. Thresholds are chosen on all pairs of
    validation identities and measured on all pairs of test identities, whatever pairs the protocol of the test lists: a
    list of 1,500 pairs of different people cannot resolve a false-accept rate of 1e-3. All ranks embed; the first one
    calibrates and writes.
    """

    def __init__(self) -> None:
        self.embeddings: list[EmbeddingSet] = []  # of clean and of masked validation faces
        self._calibration: thresholds.Calibration | None = None

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Embed the validation faces; the module has embedded the test faces."""
        self.embeddings, self._calibration = [], None
        if checkpoint_of_own_test(trainer) is None:
            return
        data, loaders = trainer.datamodule, trainer.datamodule.val_dataloader()
        if min(len(loader.dataset) for loader in loaders) < 2:
            name = type(data.face_set).__name__
            _logger.warning("no thresholds: %s has no validation faces to calibrate them on", name)
            return
        self.embeddings = [_embed(pl_module, data, loader) for loader in loaders]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the thresholds."""
        checkpoint, calibration = checkpoint_of_own_test(trainer), self.calibration(trainer, pl_module)
        if checkpoint is None or calibration is None:
            return
        path = thresholds.thresholds_path(checkpoint)
        with continue_without(path):
            thresholds.write_thresholds(checkpoint, calibration)
            supported = ", ".join(f"{name} {len(calibration.thresholds[name])}" for name in thresholds.CONDITIONS)
            print(f"thresholds: {path} (number of targets: {supported})", flush=True)

    def calibration(self, trainer: Any, pl_module: Any) -> thresholds.Calibration | None:
        """Return the calibration once the test has ended; None on other ranks or if it is not possible.

        The first call computes it, so that it does not matter which callback comes first.
        """
        if self._calibration is None and self.embeddings and trainer.is_global_zero:
            try:
                self._calibration = self._calibrate(trainer.datamodule, pl_module.results.embeddings)
            except ValueError as error:  # such as a student without a de-occluder, which predicts no masks
                _logger.warning("no thresholds: %s", error)
                self.embeddings = []
        return self._calibration

    def _calibrate(self, data: Any, tested: dict[str, EmbeddingSet]) -> thresholds.Calibration:
        measured: dict[str, thresholds.CountedPairs] = {}
        probe = tested.get("student_predicted_mask", tested.get("student"))
        gallery = tested.get("student_clean_predicted_mask", tested.get("student_clean"))
        if probe is not None and gallery is not None:
            gallery = gallery.take(torch.isin(gallery.identity, probe.identity))  # a protocol may leave identities out
            measured = _conditions(gallery, probe, MEASURED_PAIRS)
        clean, masked = self.embeddings
        pairs = _conditions(clean, masked)
        return thresholds.Calibration(
            thresholds={name: thresholds.calibrate(counted, measured.get(name)) for name, counted in pairs.items()},
            masked=thresholds.separate(clean.coverage, masked.coverage),
            least_visible=thresholds.least_visible(masked.coverage),
            size=data.size,
            data=type(data.face_set).__name__,
            data_hash=data.face_set.fingerprint("val"),
        )


def checkpoint_of_own_test(trainer: Any) -> Path | None:
    """Return the checkpoint of a run that is tested on all of its own face set; None in any other test.

    Such a test writes to the run's folder or to one that contains it, as in `make demo`. A test on other faces writes
    to a folder of its own.
    """
    if not trainer.ckpt_path or runs.part_of_data(trainer, "test"):
        return None
    checkpoint = Path(trainer.ckpt_path)
    run, out = runs.run_folder_of(checkpoint).resolve(), Path(trainer.default_root_dir).resolve()
    trained_on = runs.face_set_of(run)[0]
    same = trained_on in (None, type(trainer.datamodule.face_set).__name__)
    return checkpoint if same and out in (run, *run.parents) and checkpoint.is_file() else None


@torch.no_grad()
def _embed(module: Any, data: Any, loader: Iterable[Any]) -> EmbeddingSet:
    """Embed this rank's share of a loader and gather all; the coverage is that of the face by the predicted mask."""
    bank = EmbeddingBank()
    for batch in loader:
        masked = data.on_after_batch_transfer(module.transfer_batch_to_device(batch, module.device, 0), 0)
        predicted: dict[str, Tensor] = module.predict_step(masked, 0)
        ids = {name: masked[name] for name in ("identity", "index", "kind", "seed")}
        bank.update(predicted["embedding"], **ids, coverage=thresholds.covered_share(predicted["mask"]))
    return bank.compute()


def _conditions(
    gallery: EmbeddingSet, probe: EmbeddingSet, most: int | None = None
) -> dict[str, thresholds.CountedPairs]:
    """Return all pairs of each of `CONDITIONS`, from a clean gallery and masked probes, see `AllPairs.narrow`."""
    protocol = AllPairs()
    gallery, probe = protocol.narrow({"gallery": gallery, "probe": probe}, most).values()
    cross_repeats, within_repeats = protocol.repeats(probe)
    return {
        "clean-clean": thresholds.CountedPairs(protocol.within(gallery), protocol.repeats(gallery)[1]),
        "clean-masked": thresholds.CountedPairs(protocol.cross(gallery, probe), cross_repeats),
        "masked-masked": thresholds.CountedPairs(protocol.within(probe), within_repeats),
    }


class ModelFolderCallback(pl.Callback):
    """Write the model folder (networks, thresholds, model card) after a stage-2 run is tested on its own data.

    It reads files that `ResultsCallback` and `CalibrationCallback` write in `on_test_end`. `teardown` runs after that
    hook of all callbacks, so their order in a configuration does not matter.
    """

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the folder and print its path."""
        checkpoint = checkpoint_of_own_test(trainer) if stage == "test" else None
        if checkpoint is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        results = json.loads((folder.parent / runs.RESULTS).read_text(encoding="utf-8"))
        pipeline = load(checkpoint)
        config = {
            **pipeline.config,
            "training": {**training_facts(results), "teacher_hash": _hash_weights(cast(nn.Module, pl_module.teacher))},
            "licences": licences(pipeline.config["teacher"], results.get("data")),
        }
        with continue_without(folder):
            size = write_model(folder, config, pipeline.network, model_card(config, results, pipeline.thresholds))
            print(f"model:   {folder} ({size / 1e6:.1f} MB)", flush=True)


def _hash_weights(network: nn.Module) -> str | None:
    """Return a hash of all weights; None for a network without any, such as one in an ONNX file."""
    state = sorted(network.state_dict().items())
    parts = [part for name, tensor in state for part in (name, tensor.detach().cpu().contiguous().numpy().tobytes())]
    return checksum(*parts)[:16] if parts else None
