"""A training that ends early without having planned to."""

import pytorch_lightning as pl


class StopAfterFirstEpoch(pl.Callback):
    """Stops once the first epoch's checkpoint is written; the schedule still reckons with all epochs."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the stop."""
        trainer.should_stop = True
