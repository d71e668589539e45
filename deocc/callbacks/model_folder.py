"""Write the model folder after a test: networks, thresholds and model card in a form that others can load."""

import json
import warnings
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
from torch import Tensor, nn

from deocc import runs
from deocc.callbacks.calibration import checkpoint_of_own_test
from deocc.files import checksum
from deocc.inference.model_card import licences, model_card, training_facts
from deocc.inference.model_folder import FOLDER, load, write_model


class ModelFolderCallback(pl.Callback):
    """Writes the model folder after a stage-2 run has been tested on its own data.

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
            "training": {
                **training_facts(results),
                "teacher_hash": _hash_weights(cast(nn.Module, pl_module.teacher)),
            },
            "licences": licences(pipeline.config["teacher"], results.get("data")),
        }
        try:
            size = write_model(folder, config, pipeline.network, model_card(config, results, pipeline.thresholds))
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"cannot write {folder} ({reason}): make it writable and test again", stacklevel=2)
        else:
            print(f"model:   {folder} ({size / 1e6:.1f} MB)", flush=True)


def _hash_weights(network: nn.Module) -> str | None:
    """Return a hash of all weights; None for a network without any, such as one in an ONNX file."""
    state: dict[str, Tensor] = network.state_dict()
    parts: list[bytes | str] = []
    for name in sorted(state):
        parts += [name, state[name].detach().cpu().contiguous().numpy().tobytes()]
    return checksum(*parts)[:16] if parts else None
