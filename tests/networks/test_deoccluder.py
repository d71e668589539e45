"""Stage 1 as stage 2 sees it: the generator's own result, as tensors that a student can be trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks import Deoccluder, Generator, MaskSegmenter
from deocc.networks.generator import complete


@pytest.fixture
def deoccluder() -> Deoccluder:
    torch.manual_seed(0)
    return Deoccluder({"width": 8}, {"width": 8})


def masked_faces() -> tuple[Tensor, Tensor]:
    masked_face = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 40, 40)
    mask[:, :, 10:30, 8:36] = 1
    return masked_face, mask


@torch.no_grad()
def test_it_completes_and_segments_as_its_networks_do(deoccluder: Deoccluder) -> None:
    generator, segmenter = Generator(8), MaskSegmenter(8)  # in the usual order of memory
    generator.load_state_dict(deoccluder.generator.state_dict())
    segmenter.load_state_dict(deoccluder.segmenter.state_dict())
    masked_face, mask = masked_faces()
    torch.testing.assert_close(deoccluder(masked_face, mask), complete(generator, masked_face, mask))
    assert torch.equal(deoccluder.predict_mask(masked_face), segmenter.predict_mask(masked_face))


def test_a_student_can_be_trained_on_what_it_returns(deoccluder: Deoccluder) -> None:
    masked_face, mask = masked_faces()
    student = nn.Conv2d(4, 2, 3)
    seen = torch.cat([deoccluder(masked_face, mask), deoccluder.predict_mask(masked_face)], 1)
    student(seen).sum().backward()
    assert student.weight.grad is not None
    for result in (deoccluder(masked_face, mask), deoccluder.predict_mask(masked_face)):
        assert not result.is_inference() and not result.requires_grad and result.is_contiguous()
        nn.Conv2d(result.shape[1], 1, 3)(result).sum().backward()  # convolutions keep their input for the backward pass


def test_its_layers_run_channels_last_whoever_loads_the_weights(deoccluder: Deoccluder) -> None:
    other = Deoccluder(**deoccluder.config)
    other.load_state_dict({key: value.contiguous() for key, value in deoccluder.state_dict().items()})
    orders: list[bool] = []
    layer = other.generator.fill[0]
    layer.register_forward_hook(
        lambda _, given, __: orders.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    other(*masked_faces())
    assert orders == [True]


def test_the_compiled_generator_completes_alike_under_the_same_names(deoccluder: Deoccluder) -> None:
    masked_face, mask = masked_faces()
    expected, names = deoccluder(masked_face, mask), list(deoccluder.state_dict())
    torch._dynamo.reset()  # where another test has compiled it for other sizes, torch would trace sizes as symbols, and cannot
    deoccluder.generator.compile(backend="aot_eager")  # the graph is traced, and no C++ compiler needed
    torch.testing.assert_close(deoccluder(masked_face, mask), expected)
    assert list(deoccluder.state_dict()) == names


@torch.no_grad()
def test_deoccluder_works_at_its_own_size(deoccluder: Deoccluder) -> None:
    small = Deoccluder({"width": 8}, {"width": 8}, size=32)
    small.load_state_dict(deoccluder.state_dict())
    sides: list[int] = []
    for network in (small.generator, small.segmenter):
        network.register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-1]))
    masked_face, mask = masked_faces()
    completed, predicted = small(masked_face, mask), small.predict_mask(masked_face)
    assert sides == [32, 32]
    assert completed.shape == masked_face.shape and predicted.shape == mask.shape
    visible = (mask == 0).expand_as(completed)
    assert torch.equal(completed[visible], masked_face[visible])
    assert not torch.equal(completed[~visible], masked_face[~visible]) and completed.abs().max() <= 1
    shrunk = F.interpolate(masked_face, (32, 32), mode="bilinear", antialias=True)
    expected = F.interpolate(deoccluder.segmenter.predict_mask(shrunk), (40, 40), mode="bilinear")
    torch.testing.assert_close(predicted, expected)
    face = masked_face[..., :24, :24]  # a smaller one stays as it is
    assert torch.equal(small(face, mask[..., :24, :24]), deoccluder(face, mask[..., :24, :24]))


def _save_stage1(path: Path, deoccluder: Deoccluder, segmenter_width: int | None) -> None:
    state = {f"average.module.{key}": value for key, value in deoccluder.generator.state_dict().items()}
    if segmenter_width is not None:
        state |= {f"segmenter.{key}": value for key, value in deoccluder.segmenter.state_dict().items()}
    settings = {"width": 8, "attention": True, "segmenter_width": segmenter_width}
    torch.save({"stage": "inpainting", "hyper_parameters": settings, "state_dict": state, "face_size": 32}, path)


def _save_segmenter(path: Path, segmenter: MaskSegmenter) -> None:
    state = {f"average.module.{key}": value for key, value in segmenter.state_dict().items()}
    settings: dict[str, Any] = dict(segmenter.config)
    torch.save({"stage": "segmentation", "hyper_parameters": settings, "state_dict": state}, path)


def test_deoccluder_takes_a_segmenter_checkpoint(deoccluder: Deoccluder, tmp_path: Path) -> None:
    segmenter = MaskSegmenter(12)
    segmenter.gate.fill_(0.01)
    _save_segmenter(tmp_path / "segment.ckpt", segmenter)
    for width in (8, None):  # in place of stage 1's own, or where it has none
        _save_stage1(tmp_path / "inpaint.ckpt", deoccluder, width)
        loaded = Deoccluder.from_checkpoint(tmp_path / "inpaint.ckpt", tmp_path / "segment.ckpt")
        assert loaded.size == 32 and loaded.config["segmenter"] == {"width": 12}
        assert all(
            torch.equal(value, loaded.segmenter.state_dict()[key]) for key, value in segmenter.state_dict().items()
        )
        twin = Deoccluder(**loaded.config)
        twin.load_state_dict(loaded.state_dict())
        assert torch.equal(twin(*masked_faces()), loaded(*masked_faces()))


def test_deoccluder_without_segmenter_is_refused(deoccluder: Deoccluder, tmp_path: Path) -> None:
    _save_stage1(tmp_path / "inpaint.ckpt", deoccluder, 8)
    own = Deoccluder.from_checkpoint(tmp_path / "inpaint.ckpt").segmenter.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in deoccluder.segmenter.state_dict().items())
    _save_stage1(tmp_path / "inpaint.ckpt", deoccluder, None)
    with pytest.raises(ValueError, match="has no segmenter: give a run of SegmentationModule as segmenter_checkpoint"):
        Deoccluder.from_checkpoint(tmp_path / "inpaint.ckpt")
    with pytest.raises(ValueError, match="not of 'segmentation'"):
        Deoccluder.from_checkpoint(tmp_path / "inpaint.ckpt", tmp_path / "inpaint.ckpt")
