"""Weights & Biases that never ends or holds up a training: whatever happens to the connection, the run folder has it all."""

import atexit
import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import WandbLogger

from deocc.callbacks.write_faults import WriteFaults, write_whole
from deocc.evaluation.results import ROWS

WANDB_ID = "deocc_run_id"
"""The file in a run's `wandb/` that holds its W&B id, so that resuming and testing go on in the same W&B run."""

BEST = {f"val/{row}/{score}": best for row in ROWS for score, best in (("eer", "min"), ("rank1", "max"))} | {
    f"val/{source}/{score}": "max" for source in ("given_mask", "predicted_mask") for score in ("psnr", "ssim")
}
"""The validation scores whose best value a W&B run's summary keeps beside the last one, and which value is the best."""

_STEP: Final = "trainer/global_step"  # WandbLogger's horizontal axis; a metric with a definition of its own loses the general one
_PATIENCE: Final = "WANDB_FINISH_TIMEOUT"
_SECONDS: Final = "60"  # OURS: wandb itself waits until the server answers, for hours or for ever
_ID: Final = re.compile(r"r[0-9a-f]{8}")
_FOLDER: Final = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(r[0-9a-f]{8})")


class WandbRunLogger(WandbLogger):
    """A WandbLogger that goes on offline where W&B does not answer at the start, and whose summary keeps the scores in `BEST`.

    A connection that is lost later stops nothing: wandb writes to the run folder first and tries again by itself. At the end of the
    process it gets WANDB_FINISH_TIMEOUT seconds to upload the rest, 60 unless the environment says otherwise. Where the disk is full, a
    picture that finds no room is left out; wandb's own file ends for good, so that an offline run has no more than that.

    A resumed run goes on in its W&B run. What it repeats since its checkpoint W&B shows twice, at the same step and with the same value:
    a row that W&B has cannot be taken back, and which rows have reached it is not known here. So it is with `wandb sync` of a run that was
    uploaded in part.

    Args:
        project: the W&B project.
        entity: the W&B user or team; None for the key's own.
        name: of the W&B run.
        group: the runs that the dashboard shows together.
        job_type: what the run does.
        kwargs: of WandbLogger.
    """

    def __init__(
        self,
        project: str = "deocc",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, entity=entity, name=name, group=group, job_type=job_type, **kwargs)
        self._faults = WriteFaults()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            os.environ.setdefault(_PATIENCE, _SECONDS)
            run = self._begin()
            atexit.register(self.finish)  # before wandb's own, which waits as long, but says nothing
            for name, best in BEST.items():
                run.define_metric(name, step_metric=_STEP, step_sync=True, summary=f"{best},last")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers and media; where the disk takes no media, or wandb's process is gone, training goes on without."""
        with self._spared():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures, if the disk takes them."""
        with self._spared():
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run, and say where all of it lies if the server does not take it in time."""
        atexit.unregister(self.finish)
        run, begun, late = self._experiment, time.monotonic(), True
        if run is None:
            return
        try:
            with self._spared():
                run.finish()
                late = 0 < float(os.environ.get(_PATIENCE, _SECONDS)) <= time.monotonic() - begun
        finally:
            if late:
                folder = Path(run.dir).parent
                advice = f"`wandb sync --include-online {folder}` uploads it"  # without the option, wandb passes over runs begun online
                print(f"deocc: W&B did not take all of the run; it lies in {folder}, and {advice}", flush=True)

    def _spared(self) -> contextlib.AbstractContextManager[None]:
        return self._faults.spared(Path(str(self.save_dir)) / "wandb", "metrics.csv goes on")

    def _begin(self) -> Any:
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            reason = " ".join(str(error).split())
            wandb.teardown()  # the attempt that failed holds the run's id
            os.environ["WANDB_MODE"] = "offline"
            print(f"deocc: W&B does not answer ({reason}), logging offline to {self.save_dir}/wandb; `wandb sync` uploads it", flush=True)
            return super().experiment


def wandb_id(home: Path) -> str:
    """The id of the W&B run that belongs to a run folder; a new one where there is none yet.

    A file that a crash of the machine emptied or cut is written again, from the name of the newest folder in `wandb/`: it ends in the id.
    """
    path = home / "wandb" / WANDB_ID
    if (kept := _kept_id(path)) is not None:
        return kept
    begun = [found.groups() for folder in path.parent.glob("*run-*") if (found := _FOLDER.fullmatch(folder.name))]
    wanted = max(begun)[1] if begun else f"r{secrets.token_hex(4)}"  # the letter keeps a parser from reading 269e7080 as a number
    if path.exists():
        write_whole(path, wanted.encode())
    else:
        _write_first(path, wanted)
    return _kept_id(path) or wanted


def _kept_id(path: Path) -> str | None:
    text = path.read_text(errors="replace") if path.is_file() else ""
    return text if _ID.fullmatch(text) else None


def _write_first(path: Path, wanted: str) -> None:
    draft = path.with_name(f"{WANDB_ID}.{secrets.token_hex(8)}")
    write_whole(draft, wanted.encode())
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)  # of several processes the first one names the run
    draft.unlink()
