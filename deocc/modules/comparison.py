"""What an evaluation of stage 2 collects: teacher and student, on masked and on completed faces, by given and by predicted mask."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.evaluation import EmbeddingBank, EmbeddingSet, MaskPredictionMetric, RestorationMetric

GALLERIES = ("gallery_teacher", "gallery_student", "gallery_teacher_predicted_mask", "gallery_student_predicted_mask")
"""Clean faces: by an empty mask, and as photographs are embedded, by the predicted mask."""
PROBES = ("teacher_masked", "teacher_completed", "teacher_completed_predicted_mask", "student", "student_predicted_mask")
SOURCES = ("given_mask", "predicted_mask")


class Comparison(nn.Module):
    """Embeddings by row of the results, and restoration by source of the mask; reduces across processes."""

    def __init__(self) -> None:
        super().__init__()
        self.banks = nn.ModuleDict({name: EmbeddingBank() for name in (*GALLERIES, *PROBES)})
        self.restoration = nn.ModuleDict({source: RestorationMetric() for source in SOURCES})
        self.mask_prediction = MaskPredictionMetric()
        self.seen: set[str] = set()

    def add(self, row: str, embedding: Tensor, batch: FaceBatch) -> None:
        """Add a batch's embeddings, (B, D) unit vectors, to one of `GALLERIES` or `PROBES`."""
        self.seen.add(row)
        bank = cast(EmbeddingBank, self.banks[row])
        mask = cast(MaskedFaceBatch, batch).get("mask")
        coverage = mask.mean((1, 2, 3)) if mask is not None else None
        bank.update(embedding, batch["identity"], batch["index"], batch["kind"], batch["seed"], coverage)

    def add_restoration(self, source: str, completed_face: Tensor, batch: MaskedFaceBatch) -> None:
        """Add a batch's completed faces, (B, 3, H, W) in [-1, 1], to one of `SOURCES`."""
        self.seen.add(source)
        cast(RestorationMetric, self.restoration[source]).update(completed_face, batch["face"], batch["mask"], batch["kind"])

    def add_mask_prediction(self, predicted_mask: Tensor, batch: MaskedFaceBatch) -> None:
        """Add a batch's predicted masks, (B, 1, H, W) in [0, 1]; those of bare faces measure false alarms."""
        self.seen.add("mask_prediction")
        self.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])

    def collect(self) -> tuple[dict[str, EmbeddingSet], dict[str, dict[str, Any]]]:
        """The embeddings by row and the restoration by source, of what was seen; then start anew."""
        embeddings = {name: cast(EmbeddingBank, bank).compute() for name, bank in self.banks.items() if name in self.seen}
        restoration = {name: cast(RestorationMetric, metric).compute() for name, metric in self.restoration.items() if name in self.seen}
        self.reset()
        return embeddings, restoration

    def reset(self) -> None:
        """Forget everything seen."""
        self.seen.clear()
        for metric in (*self.banks.values(), *self.restoration.values(), self.mask_prediction):
            cast(EmbeddingBank, metric).reset()


def centred(raw: Tensor, center: Tensor) -> Tensor:
    """(B, D) raw embeddings -> unit vectors (raw - center) / |raw - center|, in float32 whatever the autocast state."""
    return F.normalize(raw.float() - center, dim=1)
