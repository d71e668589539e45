"""Mask prediction alone: what learns, what is evaluated, how the gate is calibrated, what a checkpoint contains."""

import deocc._torchvision  # isort: skip  # noqa: F401  # before Lightning, also in spawned processes

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.data import MaskedFaceDataModule
from deocc.data.face_set import Split
from deocc.inference.model_folder import PRETRAINED
from deocc.losses import mask_segmentation_loss
from deocc.modules import InpaintingModule, SegmentationModule
from deocc.modules.evaluation import gather_evidence
from deocc.networks.segmenter import load_segmenter, mask_evidence
from tests.data.conftest import TinyFaces
from tests.losses.spawning import PROCESSES, run_processes
from tests.modules.training import GENERATOR_ONLY, SMALL, faces, fit, moved, snapshot, stage1_checkpoint, trainer_for


class Data(MaskedFaceDataModule):
    """Twelve training faces, six for validation and six for testing."""

    def __init__(self) -> None:
        super().__init__(TinyFaces(), size=48, batch_size=6, eval_batch_size=6, kinds=("box",))


class FiveFaces(Data):
    """Five validation faces, of which one process gets three and the other two."""

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return super()._chosen(split, indices)[:5]


def set_bias(segmenter: Any, bias: float) -> None:
    with torch.no_grad():
        segmenter.to_logits[0].bias.fill_(bias)


def test_steps_lower_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, batch, losses = SegmentationModule(width=8, learning_rate=1e-2), faces(), []
    average = snapshot(module.average)
    for steps in (3, 0):
        with torch.no_grad():
            losses.append(float(mask_segmentation_loss(module.segmenter(batch["masked_face"]), batch["mask"])))
        if steps:
            fit(module, tmp_path, steps=steps, batch=batch)
    assert losses[1] < losses[0]
    assert int(module.average.n_averaged) == 3 and moved(module.average, average)
    assert set(module.terms) == {"segmentation"}


def test_average_follows_optimiser_steps(tmp_path: Path) -> None:
    """Three steps, of which the last has a single batch."""
    module = SegmentationModule(width=8, ema_decay=0.5)
    fit(module, tmp_path, steps=5, accumulate_grad_batches=2)
    assert int(module.average.n_averaged) == 3


def test_initial_weights(tmp_path: Path) -> None:
    first = SegmentationModule(width=8)
    fit(first, tmp_path, steps=2).save_checkpoint(tmp_path / "a.ckpt")
    second = SegmentationModule(width=8, initial_weights=str(tmp_path / "a.ckpt"))
    networks: list[Any] = [second.segmenter, second.averaged_segmenter, first.averaged_segmenter]
    for network in networks[:2]:
        assert torch.equal(network.to_logits[0].weight, networks[2].to_logits[0].weight)
    assert "initial_weights" not in second.hparams
    with pytest.raises(ValueError, match="do not fit MaskSegmenter"):
        SegmentationModule(width=12, initial_weights=str(tmp_path / "a.ckpt"))
    pretrained = load_segmenter(PRETRAINED)
    assert pretrained.gate > 0 and SegmentationModule(initial_weights=str(PRETRAINED)).segmenter.gate == pretrained.gate


def test_average_is_evaluated() -> None:
    module, batch = SegmentationModule(width=8), faces()
    set_bias(module.averaged_segmenter, 30.0)
    set_bias(module.segmenter, -30.0)
    expected = torch.ones_like(batch["mask"])
    assert torch.equal(module(batch["masked_face"]), expected)
    assert torch.equal(module.test_step(batch, 0, 1)["predicted_mask"], expected)
    assert torch.equal(module.predict_step(batch, 0)["mask"], expected)
    module.validation_step(batch, 0, 0)
    assert module._bare_evidence[0].tolist() == pytest.approx([30.0] * len(batch["face"]), rel=0.01)


def test_gate_calibrated_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = SegmentationModule(width=8), tmp_path / "a.ckpt"
    trainer = trainer_for(tmp_path, num_sanity_val_steps=0, enable_checkpointing=False)
    trainer.fit(module, datamodule=Data())
    segmenter = module.averaged_segmenter
    assert segmenter.gate == module.segmenter.gate == trainer.callback_metrics["val/gate"] > 0
    bare = torch.cat([batch["face"] for batch in Data().val_dataloader()[0]])
    with torch.no_grad():
        assert segmenter.gate > mask_evidence(segmenter(bare)).max()
    assert not segmenter.predict_mask(bare).any()
    trainer.save_checkpoint(path)
    assert load_segmenter(path).gate == segmenter.gate
    again = SegmentationModule.load_from_checkpoint(path, map_location="cpu")
    assert again.averaged_segmenter.gate == segmenter.gate
    assert {"val/iou/box", "val/predicted_mask/iou"} <= set(trainer.callback_metrics)


def validated_gates(folder: str, rank: int, **settings: Any) -> dict[str, Any]:
    """Return the gates of both modules with a segmenter after a validation on five faces."""
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes exist
    torch.manual_seed(0)
    modules: list[Any] = [SegmentationModule(8), InpaintingModule(**SMALL, **GENERATOR_ONLY)]
    for module in modules:
        trainer = trainer_for(Path(folder), use_distributed_sampler=False, **settings)
        trainer.validate(module, datamodule=FiveFaces(), verbose=False)
    return {type(module).__name__: module.segmenter.gate for module in modules}


def validated_share(folder: str, rank: int) -> dict[str, Any]:
    """Validate the share of a process; also gather from a process that has no readable face."""
    gates = validated_gates(folder, rank, strategy="ddp", devices=PROCESSES)
    own = [torch.arange(3.0)] if rank == 1 else []
    return {"gates": gates, "one rank": gather_evidence(own, torch.device("cpu"))}


def test_gate_of_unequal_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    expected = validated_gates(str(tmp_path), 0)
    for outcome in run_processes(partial(validated_share, str(tmp_path)), tmp_path):
        torch.testing.assert_close(outcome["gates"], expected)
        assert outcome["one rank"].tolist() == [0, 1, 2]
    assert all(gate > 0 for gate in expected.values())


def test_results_count_false_alarms(tmp_path: Path) -> None:
    module = SegmentationModule(width=8)
    module.averaged_segmenter.gate.fill_(1.0)
    set_bias(module.averaged_segmenter, -30.0)
    trainer_for(tmp_path).test(module, datamodule=Data(), verbose=False)
    found = module.results.content["mask_prediction"]
    assert found["bare"] == {"found": 0.0}
    assert found["masked"] == {"iou": 0.0, "recall": 0.0, "found": 0.0}
    assert list(found["per_kind"]) == ["box"] == module.results.content["kinds"]


def test_other_stage_refused(tmp_path: Path) -> None:
    other = stage1_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="inpainting"):
        SegmentationModule(width=8).on_load_checkpoint(torch.load(other, weights_only=True))
    with pytest.raises(ValueError, match="not of 'segmentation'"):
        load_segmenter(other)


def test_real_occluders_refused() -> None:
    batch: Any = {key: value for key, value in faces().items() if key != "mask"}
    with pytest.raises(ValueError, match="real occluders"):
        SegmentationModule(width=8).test_step(batch, 0, 1)
