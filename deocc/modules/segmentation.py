"""The mask predictor, trained by itself: it needs far more images than the generator, and none of its networks.

The paper is given its masks; this module, its loss and its schedule are our choice. What the network learns to ignore (glasses frames,
beards, shadows, a camera's defects) is painted by the data module (`data.distractors: true`).
"""

from typing import Any, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import MaskPredictionMetric, build_restoration_results, flat_scores, mask_prediction_results
from deocc.losses import mask_segmentation_loss
from deocc.masking import list_kinds
from deocc.modules.evaluation import SteppingModule, outside_autocast
from deocc.modules.optimization import check_stage, warmup_cosine
from deocc.networks.segmenter import MaskSegmenter, predicted_share

STAGE = "segmentation"


class SegmentationModule(SteppingModule):
    """Trains a mask segmenter; evaluates its running average, whose gate is calibrated on the bare validation faces.

    Args:
        width: channels of the segmenter's first layer.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
        ema_decay: of the running average, per step.
    """

    def __init__(
        self, width: int = 16, learning_rate: float = 3e-3, weight_decay: float = 1e-4, ema_decay: float = 0.998
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.segmenter = MaskSegmenter(width)
        self.average = AveragedModel(self.segmenter, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.mask_prediction = MaskPredictionMetric()
        self._bare_shares: list[Tensor] = []

    @property
    def averaged_segmenter(self) -> MaskSegmenter:
        """The running average, which is what the run is for."""
        return cast(MaskSegmenter, self.average.module)

    @outside_autocast
    def forward(self, face: Tensor) -> Tensor:
        """Faces (B, 3, H, W) in [-1, 1] -> predicted masks (B, 1, H, W) in [0, 1]."""
        return self.averaged_segmenter.predict_mask(face)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the hardest pixels plus Dice."""
        loss = mask_segmentation_loss(self.segmenter(batch["masked_face"]), batch["mask"])
        self.terms = {"segmentation": loss.detach()}
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Let the running average follow."""
        self.average.update_parameters(self.segmenter)

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Collect the covered shares of bare faces (the first loader), then score the masks of masked ones."""
        return self._evaluation_step(batch, dataloader_idx, calibrating=True)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score the predicted masks of bare and of masked faces."""
        return self._evaluation_step(batch, dataloader_idx, calibrating=False)

    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predict masks."""
        return {"mask": self(batch["masked_face"])}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the gate on all processes' bare faces, and log intersection over union by kind."""
        if self._bare_shares:
            shares = cast(Tensor, self.all_gather(torch.cat(self._bare_shares))).flatten()
            for segmenter in (
                self.segmenter,
                self.averaged_segmenter,
            ):  # the average copies the buffers of what it follows
                segmenter.calibrate_gate(shares)
            self.log("val/gate", self.averaged_segmenter.gate.clone())
        self._bare_shares = []
        scores = self.mask_prediction.compute()
        self.mask_prediction.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(flat_scores(scores["mean"], "val/predicted_mask"))
            self.log_dict(
                {f"val/iou/{list_kinds()[kind]}": each["iou"] for kind, each in scores["per_kind"].items() if kind >= 0}
            )

    def on_test_epoch_end(self) -> None:
        """Build the results, which `deocc.callbacks` writes."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_restoration_results({}, list_kinds(), provenance)
        self.results |= mask_prediction_results(self.mask_prediction.compute(), list_kinds())
        self.mask_prediction.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine decay."""
        optimizer = AdamW(
            self.segmenter.parameters(), lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"]
        )
        scheduler = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the stage."""
        checkpoint["stage"] = STAGE

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another stage's checkpoint.

        Raises:
            ValueError: the checkpoint is of another stage.
        """
        check_stage(checkpoint, STAGE)

    @outside_autocast
    def _evaluation_step(self, batch: MaskedFaceBatch, dataloader_idx: int, calibrating: bool) -> dict[str, Tensor]:
        if "mask" not in batch:
            raise ValueError(
                "these faces have real occluders of unknown extent: a mask predictor cannot be measured on them"
            )
        if dataloader_idx == 0 and calibrating:
            self._bare_shares.append(predicted_share(self.averaged_segmenter(batch["face"]).sigmoid()))
            return {}
        predicted_mask = self(batch["masked_face"])
        self.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])
        return {"predicted_mask": predicted_mask}
