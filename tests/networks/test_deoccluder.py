"""Frozen stage-1 networks: results, ordinary tensors, memory format, working resolution and checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from deocc.files import checksum
from deocc.networks import Deoccluder, Generator, MaskSegmenter
from deocc.networks.generator import compose
from deocc.networks.segmenter import load_segmenter
from deocc.networks.weights import MODEL_FORMAT
from tests.networks.images import box_mask, random_faces


@pytest.fixture
def deoccluder() -> Deoccluder:
    return Deoccluder({"width": 8}, {"width": 8})


def masked_faces() -> tuple[Tensor, Tensor]:
    face = random_faces()
    return face, box_mask(face, 8, 10, 36, 30)


@torch.no_grad()
def test_equals_its_networks(deoccluder: Deoccluder) -> None:
    generator, segmenter = Generator(8), MaskSegmenter(8)  # default memory format
    generator.load_state_dict(deoccluder.generator.state_dict())
    segmenter.load_state_dict(deoccluder.segmenter.state_dict())
    face, mask = masked_faces()
    torch.testing.assert_close(deoccluder(face, mask), compose(face, generator(face, mask), mask))
    assert torch.equal(deoccluder.predict_mask(face), segmenter.predict_mask(face))


def test_unmasked_faces_are_not_processed(deoccluder: Deoccluder) -> None:
    sizes: list[int] = []
    deoccluder.generator.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    face, mask = masked_faces()
    mask[0] = 0
    completed = deoccluder(face, mask)
    assert torch.equal(completed[0], face[0]) and not torch.equal(completed[1], face[1])
    assert torch.equal(deoccluder(face, torch.zeros_like(mask)), face)
    assert sizes == [1]


def test_results_are_ordinary_tensors(deoccluder: Deoccluder) -> None:
    for result in (deoccluder(*masked_faces()), deoccluder.predict_mask(masked_faces()[0])):
        assert not result.is_inference() and not result.requires_grad and result.is_contiguous()
        student = nn.Conv2d(result.shape[1], 1, 3)  # saves its input for the backward pass
        student(result).sum().backward()
        assert student.weight.grad is not None


def test_channels_last_after_loading(deoccluder: Deoccluder) -> None:
    other = Deoccluder(**deoccluder.config)
    other.load_state_dict({key: value.contiguous() for key, value in deoccluder.state_dict().items()})
    formats: list[bool] = []
    other.generator.fill[0].register_forward_hook(
        lambda _, inputs, __: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    other(*masked_faces())
    assert formats == [True]


def test_compiled_generator(deoccluder: Deoccluder) -> None:
    face, mask = masked_faces()
    expected, names = deoccluder(face, mask), list(deoccluder.state_dict())
    torch._dynamo.reset()  # after compilation for other sizes, torch would trace symbolic sizes and fail
    deoccluder.generator.compile(backend="aot_eager")  # traces the graph without a C++ compiler
    torch.testing.assert_close(deoccluder(face, mask), expected)
    assert list(deoccluder.state_dict()) == names


@torch.no_grad()
def test_works_at_its_own_size(deoccluder: Deoccluder) -> None:
    small = Deoccluder({"width": 8}, {"width": 8}, size=32)
    small.load_state_dict(deoccluder.state_dict())
    sides: list[int] = []
    for network in (small.generator, small.segmenter):
        network.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    face, mask = masked_faces()
    completed, predicted = small(face, mask), small.predict_mask(face)
    assert sides == [32, 32]
    assert completed.shape == face.shape and predicted.shape == mask.shape
    visible = (mask == 0).expand_as(completed)
    assert torch.equal(completed[visible], face[visible])
    assert not torch.equal(completed[~visible], face[~visible]) and completed.abs().max() <= 1
    reduced = F.interpolate(face, (32, 32), mode="bilinear", antialias=True)
    expected = F.interpolate(deoccluder.segmenter.predict_mask(reduced), (40, 40), mode="bilinear")
    torch.testing.assert_close(predicted, expected)
    face, mask = face[..., :24, :24], mask[..., :24, :24]  # smaller faces are not enlarged
    assert torch.equal(small(face, mask), deoccluder(face, mask))


def save_stage1(path: Path, deoccluder: Deoccluder, segmenter_width: int | None) -> None:
    state = {f"average.module.{key}": value for key, value in deoccluder.generator.state_dict().items()}
    if segmenter_width is not None:
        state |= {f"segmenter.{key}": value for key, value in deoccluder.segmenter.state_dict().items()}
    settings = {"width": 8, "attention": True, "segmenter_width": segmenter_width}
    torch.save({"stage": "inpainting", "hyper_parameters": settings, "state_dict": state, "face_size": 32}, path)


def save_segmenter(path: Path, segmenter: MaskSegmenter) -> None:
    state = {f"average.module.{key}": value for key, value in segmenter.state_dict().items()}
    settings: dict[str, Any] = dict(segmenter.config)
    torch.save({"stage": "segmentation", "hyper_parameters": settings, "state_dict": state}, path)


@pytest.mark.parametrize("own_width", [8, None])
def test_from_checkpoint_with_segmenter(deoccluder: Deoccluder, tmp_path: Path, own_width: int | None) -> None:
    segmenter = MaskSegmenter(12)
    segmenter.gate.fill_(0.01)
    save_segmenter(tmp_path / "segment.ckpt", segmenter)
    save_stage1(tmp_path / "inpaint.ckpt", deoccluder, own_width)
    loaded = Deoccluder.from_checkpoint(tmp_path / "inpaint.ckpt", tmp_path / "segment.ckpt")
    assert loaded.size == 32 and loaded.config["segmenter"] == {"width": 12}
    found = loaded.segmenter.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in segmenter.state_dict().items())
    rebuilt = Deoccluder(**loaded.config)
    rebuilt.load_state_dict(loaded.state_dict())
    face, mask = masked_faces()
    assert torch.equal(rebuilt(face, mask), loaded(face, mask))


def test_from_checkpoint_needs_segmenter(deoccluder: Deoccluder, tmp_path: Path) -> None:
    path = tmp_path / "inpaint.ckpt"
    save_stage1(path, deoccluder, 8)
    found = Deoccluder.from_checkpoint(path).segmenter.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in deoccluder.segmenter.state_dict().items())
    save_stage1(path, deoccluder, None)
    with pytest.raises(ValueError, match="has no segmenter: give a run of SegmentationModule as segmenter_checkpoint"):
        Deoccluder.from_checkpoint(path)
    with pytest.raises(ValueError, match="not of 'segmentation'"):
        Deoccluder.from_checkpoint(path, path)


def test_from_model_folder(deoccluder: Deoccluder, tmp_path: Path) -> None:
    state = {f"deoccluder.{key}": value.half().contiguous() for key, value in deoccluder.state_dict().items()}
    save_file({**state, "center": torch.zeros(8)}, tmp_path / "model.safetensors")
    described = {**MODEL_FORMAT, "weights_sha256": checksum(tmp_path / "model.safetensors")}
    (tmp_path / "config.json").write_text(json.dumps({**described, "deoccluder": deoccluder.config}))
    loaded = Deoccluder.from_checkpoint(tmp_path)
    found = loaded.state_dict()
    assert all(torch.equal(value.half().float(), found[key]) for key, value in deoccluder.state_dict().items())
    other = MaskSegmenter(12)
    save_segmenter(tmp_path / "segment.ckpt", other)
    replaced = Deoccluder.from_checkpoint(tmp_path, tmp_path / "segment.ckpt")
    assert replaced.config == {**deoccluder.config, "segmenter": {"width": 12}}
    assert all(map(torch.equal, replaced.segmenter.state_dict().values(), other.state_dict().values()))
    assert not replaced.training and not any(parameter.requires_grad for parameter in replaced.parameters())
    assert load_segmenter(tmp_path).config == deoccluder.segmenter.config
    (tmp_path / "config.json").write_text(json.dumps({**described, "weights_sha256": "0"}))
    for read in (Deoccluder.from_checkpoint, load_segmenter):
        with pytest.raises(ValueError, match=r"does not belong to its config\.json"):
            read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**described, "deoccluder": None}))
    with pytest.raises(ValueError, match="is not a model folder with a de-occluder"):
        Deoccluder.from_checkpoint(tmp_path)
