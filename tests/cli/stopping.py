"""A training that fails."""

import pytorch_lightning as pl


class BreakInSecondEpoch(pl.Callback):
    """Fails in the second epoch, like a machine that is switched off; the schedule is that of all epochs."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Fail in the second epoch."""
        if trainer.current_epoch == 1:
            raise OSError("the machine was switched off")
