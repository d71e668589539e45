"""Completion and its evaluation in stage 1: the generator's running average fills what a given or a predicted mask covers."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import (
    MaskPredictionMetric,
    RestorationMetric,
    build_restoration_results,
    flat_scores,
    mask_prediction_results,
)
from deocc.masking import list_kinds
from deocc.modules.precision import outside_autocast
from deocc.modules.stepping import SteppingModule
from deocc.networks.generator import compose
from deocc.networks.segmenter import MaskSegmenter, predicted_share


class RestorationModule(SteppingModule):
    """What a trained stage 1 does, in float32 in any trainer; `InpaintingModule` builds its parts and trains them."""

    average: AveragedModel
    segmenter: MaskSegmenter | None
    restoration: nn.ModuleDict
    """A `RestorationMetric` by source of the mask."""
    mask_prediction: MaskPredictionMetric
    bare_shares: list[Tensor]
    """Of the bare validation faces, on which the segmenter's gate is calibrated."""

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face, (B, 3, H, W) in [-1, 1], by the generator's running average."""
        return compose(masked_face, self.average(masked_face, mask), mask)

    @outside_autocast
    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Restore the masked faces (the second loader), with the given and with the predicted mask."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            self.bare_shares.append(predicted_share(self.segmenter(batch["face"]).sigmoid()))
        return {}

    @outside_autocast
    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As in validation; bare faces show how often the segmenter predicts a mask where there is none."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            self.mask_prediction.update(self.segmenter.predict_mask(batch["face"]), batch["mask"], batch["kind"])
        return {}

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Completed face, by the predicted mask where there is a segmenter and else by the given one."""
        masked_face = batch["masked_face"]
        mask = batch["mask"] if self.segmenter is None else self.segmenter.predict_mask(masked_face)
        return {"mask": mask, "completed_face": self(masked_face, mask)}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the segmenter's gate, and log the restoration."""
        if self.segmenter is not None and self.bare_shares:
            self.segmenter.calibrate_gate(cast(Tensor, self.all_gather(torch.cat(self.bare_shares))).flatten())
        self.bare_shares = []
        self.mask_prediction.reset()
        for source, scores in self._collect_restoration().items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Build the results, which `deocc.callbacks` writes."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_restoration_results(self._collect_restoration(), list_kinds(), provenance)
        if self.segmenter is not None:
            self.results |= mask_prediction_results(self.mask_prediction.compute(), list_kinds())
        self.mask_prediction.reset()

    def _restore(self, batch: MaskedFaceBatch) -> dict[str, Tensor]:
        if "mask" not in batch:
            raise ValueError(
                "these faces carry real occluders, of which neither mask nor clean face is known: stage 1 cannot be measured on them; "
                "test a stage-2 run"
            )
        masks = {"given_mask": batch["mask"]}
        if self.segmenter is not None:
            masks["predicted_mask"] = self.segmenter.predict_mask(batch["masked_face"])
            self.mask_prediction.update(masks["predicted_mask"], batch["mask"], batch["kind"])
        shown: dict[str, Tensor] = {key: mask for key, mask in masks.items() if key == "predicted_mask"}
        for source, mask in masks.items():
            completed_face = self(batch["masked_face"], mask)
            shown["completed_face" if source == "given_mask" else "completed_face_predicted_mask"] = completed_face
            metric = cast(RestorationMetric, self.restoration[source])
            metric.update(completed_face, batch["face"], batch["mask"], batch["kind"])
        return shown

    def _collect_restoration(self) -> dict[str, Any]:
        """The restoration by source of the mask since the last call."""
        restoration = {
            source: cast(RestorationMetric, metric).compute()
            for source, metric in self.restoration.items()
            if source == "given_mask" or self.segmenter is not None
        }
        for metric in self.restoration.values():
            cast(RestorationMetric, metric).reset()
        return restoration
