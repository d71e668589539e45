"""A training that ends early without having planned to."""

import pytorch_lightning as pl


class BreakInSecondEpoch(pl.Callback):
    """Fails in the midst of the second epoch, as a machine that is switched off; the schedule reckons with all epochs."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Fail."""
        if trainer.current_epoch == 1:
            raise OSError("the machine was switched off")
