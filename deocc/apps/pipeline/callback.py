"""Write the model folder of a tested run."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
from torch import nn

from deocc import runs
from deocc.apps.pipeline.card import licences, model_card, training_facts
from deocc.apps.pipeline.folder import FOLDER, write_model
from deocc.apps.pipeline.loading import load
from deocc.callbacks.calibration import checkpoint_of_own_test


class ModelFolderCallback(pl.Callback):
    """Writes the model folder of a stage 2 that is tested on its own data: weights, configuration and model card.

    It reads files of `ResultsCallback` and `CalibrationCallback` and comes after them.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder and print where it is."""
        checkpoint = checkpoint_of_own_test(trainer)
        if checkpoint is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        results = json.loads((folder.parent / runs.RESULTS).read_text(encoding="utf-8"))
        pipeline = load(checkpoint)
        config = {
            **pipeline.config,
            "training": {**training_facts(results), "teacher_hash": _hash(cast(nn.Module, pl_module.teacher))},
            "licences": licences(pipeline.config["teacher"], results.get("data")),
        }
        try:
            size = write_model(folder, config, pipeline.network, model_card(config, results, pipeline.thresholds))
        except OSError as error:
            warnings.warn(f"cannot write {folder} ({error.strerror or error}): make it writable and test again", stacklevel=2)
        else:
            print(f"model:   {folder} ({size / 1e6:.1f} MB)", flush=True)


def _hash(network: nn.Module) -> str | None:
    """Hash of all weights; None for a network that shows none, such as one in an ONNX file."""
    digest, state = hashlib.sha256(), network.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16] if state else None
