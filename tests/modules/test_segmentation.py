"""The mask predictor by itself: what learns, what is evaluated, how its gate is set, and what a checkpoint holds."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from deocc.batch import MaskedFaceBatch
from deocc.data import MaskedFaceDataModule
from deocc.losses import mask_segmentation_loss
from deocc.modules import InpaintingModule, SegmentationModule
from deocc.networks.segmenter import load_segmenter, predicted_share
from tests.data.conftest import TinyFaces
from tests.modules.test_inpainting import faces, fit, trainer_for


class _Data(MaskedFaceDataModule):
    """Twelve training faces, six to validate and six to test on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            TinyFaces(), **{"size": 48, "batch_size": 6, "eval_batch_size": 6, "kinds": ("box",), **settings}
        )


def _fitted(folder: Path, **settings: Any) -> tuple[SegmentationModule, pl.Trainer]:
    """Two training steps, then a validation."""
    torch.manual_seed(0)
    module = SegmentationModule(width=8)
    trainer = trainer_for(folder, num_sanity_val_steps=0, enable_checkpointing=False, **settings)
    trainer.fit(module, datamodule=_Data())
    return module, trainer


@torch.no_grad()
def _loss(module: SegmentationModule, batch: MaskedFaceBatch) -> float:
    return float(mask_segmentation_loss(module.segmenter(batch["masked_face"]), batch["mask"]))


def test_segmentation_steps_lower_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, batch = SegmentationModule(width=8, learning_rate=1e-2), faces()
    before = _loss(module, batch)
    average = [parameter.clone() for parameter in module.average.parameters()]
    fit(module, tmp_path, steps=3, batch=batch)
    assert _loss(module, batch) < before
    assert int(module.average.n_averaged) == 3
    assert any(not torch.equal(a, b) for a, b in zip(average, module.average.parameters(), strict=True))
    assert set(module.terms) == {"segmentation"}


def test_segmentation_evaluates_the_average(tmp_path: Path) -> None:
    module, batch = SegmentationModule(width=8), faces()
    with torch.no_grad():
        module.averaged_segmenter.to_logits[0].bias.fill_(30.0)
        module.segmenter.to_logits[0].bias.fill_(-30.0)
    expected = torch.ones_like(batch["mask"])
    assert torch.equal(module(batch["masked_face"]), expected)
    assert torch.equal(module.test_step(batch, 0, 1)["predicted_mask"], expected)
    assert torch.equal(module.predict_step(batch, 0)["mask"], expected)
    module.validation_step(batch, 0, 0)
    assert module._bare_shares[0].tolist() == [1.0] * len(batch["face"])


def test_segmentation_calibrates_the_gate(tmp_path: Path) -> None:
    module, trainer = _fitted(tmp_path)
    segmenter = module.averaged_segmenter
    assert segmenter.gate == module.segmenter.gate == trainer.callback_metrics["val/gate"] > 0
    bare = torch.cat([batch["face"] for batch in trainer.datamodule.val_dataloader()[0]])  # type: ignore[attr-defined]
    with torch.no_grad():
        assert segmenter.gate > predicted_share(segmenter(bare).sigmoid()).max()
    assert not segmenter.predict_mask(bare).any()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_segmenter(tmp_path / "a.ckpt")
    assert loaded.gate == segmenter.gate
    again = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert again.averaged_segmenter.gate == segmenter.gate
    assert {"val/iou/box", "val/predicted_mask/iou"} <= set(trainer.callback_metrics)


def test_segmentation_test_counts_false_alarms(tmp_path: Path) -> None:
    module = SegmentationModule(width=8)
    module.averaged_segmenter.gate.fill_(1.0)
    with torch.no_grad():
        module.averaged_segmenter.to_logits[0].bias.fill_(-30.0)
    trainer_for(tmp_path).test(module, datamodule=_Data(), verbose=False)
    found = module.results["mask_prediction"]
    assert found["bare"] == {"found": 0.0}
    assert found["masked"] == {"iou": 0.0, "recall": 0.0, "found": 0.0}
    assert list(found["per_kind"]) == ["box"]
    assert module.results["kinds"] == ["box"]


def test_segmentation_refuses_another_stage(tmp_path: Path) -> None:
    other = InpaintingModule(
        width=8, segmenter_width=None, adversarial_weight=0, identity_weight=0, perceptual_weight=0
    )
    fit(other, tmp_path, steps=1).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="inpainting"):
        SegmentationModule(width=8).on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    with pytest.raises(ValueError, match="not of 'segmentation'"):
        load_segmenter(tmp_path / "a.ckpt")


def test_segmentation_refuses_real_occluders() -> None:
    batch: Any = {key: value for key, value in faces().items() if key != "mask"}
    with pytest.raises(ValueError, match="real occluders"):
        SegmentationModule(width=8).test_step(batch, 0, 1)
