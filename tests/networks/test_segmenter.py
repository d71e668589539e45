"""Segmenter: training, predicted masks, the gate, and checkpoints."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.networks.segmenter import MaskSegmenter, load_segmenter, mask_evidence
from tests.networks.images import box_mask, random_faces


def segmenter_of(logits: Tensor) -> MaskSegmenter:
    """Segmenter with constant logits."""
    segmenter = MaskSegmenter(8)
    segmenter.forward = lambda _: logits  # type: ignore[method-assign,assignment]
    return segmenter


@pytest.mark.parametrize(("height", "width"), [(16, 16), (37, 51), (112, 112)])
def test_segmenter_shape(height: int, width: int) -> None:
    segmenter, face = MaskSegmenter(8).eval(), random_faces(1, height, width)
    padded = F.pad(face, (0, -width % 16, 0, -height % 16), mode="reflect")
    assert segmenter(face).shape == face[:, :1].shape
    assert torch.equal(segmenter(face), segmenter(padded)[..., :height, :width])


def test_segmenter_overfits_a_batch() -> None:
    face = random_faces(2, 32, 32) * 0.3
    mask = torch.cat([box_mask(face[:1], 4, 6, 20, 22), box_mask(face[:1], 12, 16, 32, 32)])
    masked_face = torch.where(mask.bool(), 0.8, face)
    segmenter = MaskSegmenter(8)
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(segmenter(masked_face), mask).backward()
        optimizer.step()
    assert ((segmenter(masked_face) > 0) != mask).float().mean() < 0.02


def test_predict_mask_dilates_confidences() -> None:
    logits = torch.full((1, 1, 20, 20), -1.0)
    logits[0, 0, 10, 0] = 1.0
    face = random_faces(1, 20, 20)
    grown = torch.where(box_mask(face, 0, 9, 2, 12).bool(), logits.max().sigmoid(), logits.min().sigmoid())
    assert torch.equal(segmenter_of(logits).predict_mask(face), grown)


def test_predict_mask_drops_low_confidences() -> None:
    confidence = torch.linspace(0.01, 0.99, 4)[:, None, None, None].expand(4, 1, 20, 20)
    mask = segmenter_of(confidence.logit()).predict_mask(random_faces(4, 20, 20))
    low = confidence < 0.1
    assert low.any() and bool((mask[low] == 0).all())
    torch.testing.assert_close(mask[~low], confidence[~low])


def test_predict_mask_empty_below_gate() -> None:
    logits = torch.full((2, 1, 20, 20), -1.0)
    logits[0, 0, :4], logits[1, 0, :6] = 2.0, 2.0
    segmenter = segmenter_of(logits)
    covered, visible = math.log1p(math.exp(2.0)), math.log1p(math.exp(-1.0))
    expected = [0.2 * covered + 0.8 * visible, 0.3 * covered + 0.7 * visible]
    assert mask_evidence(logits).tolist() == pytest.approx(expected)
    segmenter.gate.fill_(sum(expected) / 2)
    below, above = segmenter.predict_mask(random_faces(2, 20, 20))
    assert not below.any()
    assert torch.equal(above[:, :6], logits[1, :, :6].sigmoid())


def test_calibrate_gate_false_alarms() -> None:
    segmenter = MaskSegmenter(8)
    for count, allowed in ((100, 0), (1000, 5)):
        evidence = torch.arange(count)[torch.randperm(count)] / count
        segmenter.calibrate_gate(evidence)
        assert int((evidence >= segmenter.gate).sum()) == allowed
    segmenter.calibrate_gate(torch.zeros(10))
    assert segmenter.gate > 0  # a face without covered pixels is unmasked
    with pytest.raises(ValueError, match="no bare faces"):
        segmenter.calibrate_gate(torch.zeros(0))


def test_load_segmenter_average(tmp_path: Path) -> None:
    segmenter = MaskSegmenter(8)
    segmenter.gate.fill_(0.07)
    state = {f"average.module.{key}": value for key, value in segmenter.state_dict().items()}
    state |= {f"segmenter.{key}": value + 1 for key, value in segmenter.state_dict().items()}
    content = {"stage": "segmentation", "hyper_parameters": {"width": 8}, "state_dict": state}
    torch.save(content, tmp_path / "a.ckpt")
    loaded, face = load_segmenter(tmp_path / "a.ckpt"), random_faces()
    assert loaded.gate == segmenter.gate
    assert torch.equal(loaded(face), segmenter(face))


def test_load_segmenter_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_segmenter(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        load_segmenter(tmp_path / "text.ckpt")
    torch.save({"stage": "inpainting", "hyper_parameters": {}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="stage 'inpainting', not of 'segmentation'"):
        load_segmenter(tmp_path / "other.ckpt")
