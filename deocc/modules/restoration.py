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
    segmenter: MaskSegmenter
    restoration: nn.ModuleDict
    """A `RestorationMetric` by source of the mask."""
    mask_prediction: MaskPredictionMetric
    trains_segmenter: bool
    """Whether the segmenter is trained here; its gate is then calibrated on the bare validation faces."""
    bare_shares: list[Tensor]

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face, (B, 3, H, W) in [-1, 1], by the generator's running average."""
        return compose(masked_face, self.average(masked_face, mask), mask)

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Restore the masked faces (the second loader), with the given and with the predicted mask."""
        if dataloader_idx == 0 and self.trains_segmenter:
            self.bare_shares.append(self._bare_shares_of(batch["face"]))
        return self._evaluation_step(batch, dataloader_idx)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As in validation."""
        return self._evaluation_step(batch, dataloader_idx)

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predicted mask and completed face."""
        mask = self.segmenter.predict_mask(batch["masked_face"])
        return {"mask": mask, "completed_face": self(batch["masked_face"], mask)}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the gate of a segmenter that is trained here, and log the restoration."""
        if self.trains_segmenter and self.bare_shares:
            self.segmenter.calibrate_gate(cast(Tensor, self.all_gather(torch.cat(self.bare_shares))).flatten())
        self.bare_shares = []
        for source, scores in self._collect_restoration().items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Put the results together; `deocc.callbacks` writes them down."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = {
            **build_restoration_results(self._collect_restoration(), list_kinds(), provenance),
            **mask_prediction_results(self.mask_prediction.compute(), list_kinds()),
        }
        self.mask_prediction.reset()

    @outside_autocast
    def _evaluation_step(self, batch: MaskedFaceBatch, dataloader_idx: int) -> dict[str, Tensor]:
        if dataloader_idx == 0:
            if not self.trainer.validating and not self.trainer.training:
                no_mask = torch.zeros_like(batch["face"][:, :1])
                self.mask_prediction.update(self.segmenter.predict_mask(batch["face"]), no_mask, batch["kind"])
            return {}
        if "mask" not in batch:
            raise ValueError(
                "these faces carry real occluders, of which neither mask nor clean face is known: stage 1 cannot be measured on them; "
                "test a stage-2 run"
            )
        predicted_mask = self.segmenter.predict_mask(batch["masked_face"])
        self.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])
        completed_face = self(batch["masked_face"], batch["mask"])
        restored = {"given_mask": completed_face, "predicted_mask": self(batch["masked_face"], predicted_mask)}
        for source, face in restored.items():
            cast(RestorationMetric, self.restoration[source]).update(face, batch["face"], batch["mask"], batch["kind"])
        return {"completed_face": completed_face, "predicted_mask": predicted_mask}

    @outside_autocast
    def _bare_shares_of(self, face: Tensor) -> Tensor:
        return predicted_share(self.segmenter(face).sigmoid())

    def _collect_restoration(self) -> dict[str, Any]:
        """The restoration by source of the mask since the last call."""
        restoration = {source: cast(RestorationMetric, metric).compute() for source, metric in self.restoration.items()}
        for metric in self.restoration.values():
            cast(RestorationMetric, metric).reset()
        return restoration
