"""TensorBoard that neither a full disk nor a resumed run spoils."""

from typing import TYPE_CHECKING

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from deocc.callbacks.event_file import EventFileWriter


class TensorBoardRunLogger(TensorBoardLogger):
    """A TensorBoardLogger that goes on where its file cannot be written, and whose curves show each step of a resumed run once."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "EventFileWriter":
        """What writes the event file."""
        if self._experiment is None:
            from deocc.callbacks.event_file import EventFileWriter  # here, since TensorBoard is an optional package

            self._experiment = EventFileWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        """Write what is not in the file yet, if possible; else it waits for the next call."""
        self.experiment.flush()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Tell TensorBoard to hide what was logged of the batches from `step` on, which a resumed training is about to repeat."""
        if step > 0:
            self.experiment.restart(step)
