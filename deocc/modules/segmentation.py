"""Mask prediction: the segmenter trained by itself, since it needs far more images than the generator.

The paper is given its masks. Not known from the paper; our choice: this module, its loss and its schedule. The data
module paints distractors such as glasses frames, beards and shadows (`data.distractors: true`).
"""

from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deocc.batch import MaskedFaceBatch
from deocc.evaluation.restoration import MaskPredictionMetric
from deocc.evaluation.results import build_results, flat_scores
from deocc.losses import mask_segmentation_loss
from deocc.masking import list_kinds
from deocc.modules.evaluation import FROM_CHECKPOINT, gather_evidence
from deocc.modules.optimization import Terms, WarmupCosine, check_stage, steps_left
from deocc.modules.precision import outside_autocast
from deocc.networks.segmenter import MaskSegmenter, load_segmenter, mask_evidence
from deocc.networks.weights import load_weights

STAGE = "segmentation"


class SegmentationModule(pl.LightningModule):
    """Train a mask segmenter; evaluate its running average, whose gate is calibrated on bare validation faces.

    Args:
        width: channels of the segmenter's first layer.
        initial_weights: a checkpoint of this module, or a model folder, whose segmenter the training starts from; its
            width must be the same. None starts from random weights.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        ema_decay: decay of the running average per step.
    """

    terms: Terms
    """Loss of the current step, for callbacks that check it."""

    def __init__(
        self,
        width: int = 16,
        initial_weights: str | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-4,
        ema_decay: float = 0.998,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="initial_weights")
        self.segmenter = MaskSegmenter(width)
        if initial_weights not in (None, FROM_CHECKPOINT):
            load_weights(self.segmenter, load_segmenter(initial_weights).state_dict(), Path(initial_weights))
        self.average = AveragedModel(self.segmenter, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.mask_prediction = MaskPredictionMetric()
        self._bare_evidence: list[Tensor] = []

    @property
    def averaged_segmenter(self) -> MaskSegmenter:
        """The running average, which is evaluated and exported."""
        return cast(MaskSegmenter, self.average.module)

    @outside_autocast
    def forward(self, face: Tensor) -> Tensor:
        """Predict masks (B, 1, H, W) in [0, 1] of faces (B, 3, H, W) in [-1, 1]."""
        return self.averaged_segmenter.predict_mask(face)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> Tensor:
        """Compute and log the cross-entropy of the hardest pixels plus the Dice loss."""
        loss = mask_segmentation_loss(self.segmenter(batch["masked_face"]), batch["mask"])
        self.terms = {"segmentation": loss.detach()}
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Update the running average if the optimiser stepped, which it does not while gradients accumulate."""
        if self.trainer.global_step > int(self.average.n_averaged):
            self.average.update_parameters(self.segmenter)

    @outside_autocast
    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Collect the evidence of masks on bare faces (loader 0); score the masks of masked faces (loader 1)."""
        if dataloader_idx == 1:
            return self.test_step(batch, batch_idx)
        self._bare_evidence.append(mask_evidence(self.averaged_segmenter(batch["face"])))
        return {}

    @outside_autocast
    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score the predicted masks of bare and of masked faces."""
        if "mask" not in batch:
            raise ValueError(
                "these faces have real occluders without masks: mask prediction cannot be measured on them"
            )
        predicted_mask = self(batch["masked_face"])
        self.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])
        return {"predicted_mask": predicted_mask}

    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predict masks."""
        return {"mask": self(batch["masked_face"])}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the gate on the bare faces of all ranks, and log the scores."""
        if len(evidence := gather_evidence(self._bare_evidence, self.device)) > 0:
            self.segmenter.calibrate_gate(evidence)  # too, since the average copies its buffers
            self.averaged_segmenter.calibrate_gate(evidence)
            self.log("val/gate", self.averaged_segmenter.gate.clone())
        self._bare_evidence = []
        scores = self.mask_prediction.compute()
        self.mask_prediction.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(flat_scores(scores["mean"], "val/predicted_mask"))
            by_kind = {kind: score["iou"] for kind, score in scores["per_kind"].items() if kind >= 0}
            self.log_dict({f"val/iou/{list_kinds()[kind]}": iou for kind, iou in by_kind.items()})

    def on_test_epoch_end(self) -> None:
        """Build `results`, which `deocc.callbacks` writes."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        scores = self.mask_prediction.compute()
        self.results = build_results({}, {}, list_kinds(), provenance, mask_prediction=scores)
        self.mask_prediction.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine decay."""
        rate, decay = self.hparams["learning_rate"], self.hparams["weight_decay"]
        optimizer = AdamW(self.segmenter.parameters(), lr=rate, weight_decay=decay)
        scheduler = WarmupCosine(optimizer, lambda: steps_left(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the stage."""
        checkpoint["stage"] = STAGE

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the stage."""
        check_stage(checkpoint, STAGE)
