"""Student: widened stem, projection, trainable parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deocc.inference.model_folder import PRETRAINED
from deocc.networks import Projection, Student, create_embedder, widen_stem
from deocc.networks.student import StudentInput, check_bare_faces, check_start, load_student

NAMES = ("dlib_resnet", "inception_resnet_v1", "iresnet18", "timm/resnet18")


def random_student(
    out_dim: int = 128, student_input: StudentInput = "completed", mask_channel: bool = False
) -> tuple[Student, Any]:
    """Student and its network."""
    student = Student(create_embedder("dlib_resnet", pretrained=False), out_dim, student_input, mask_channel)
    return student, student.embedder.network


@pytest.mark.parametrize("name", NAMES)
def test_widened_stem_starts_without_effect(name: str) -> None:
    embedder = create_embedder(name, pretrained=False).eval()
    face, extra = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 2, 64, 64)
    before = embedder(face)
    assert widen_stem(embedder, 2) is embedder
    after = embedder(face, extra)
    torch.testing.assert_close(after, before)
    stem = next(module for module in embedder.network.modules() if isinstance(module, nn.Conv2d))
    after.square().sum().backward()
    assert stem.weight.grad is not None and stem.weight.grad[:, 3:].abs().max() > 0
    with torch.no_grad():
        stem.weight[:, 3:] += 0.1
    assert not torch.allclose(embedder(face, extra), before)


def test_extra_channels_cropped_not_normalised() -> None:
    seen: list[Tensor] = []
    embedder = widen_stem(create_embedder("iresnet18", pretrained=False).eval(), 1)
    embedder.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    face = torch.rand(1, 1, 64, 64).expand(1, 3, 64, 64)
    embedder(face, face[:, :1])
    # The normalisation of iresnet18, (value - 127.5) / 127.5, is the identity on [-1, 1].
    torch.testing.assert_close(seen[0][:, 3], seen[0][:, 0], atol=1e-5, rtol=0)


def test_extra_channels_bad_input() -> None:
    embedder, face = create_embedder("timm/resnet18"), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="see widen_stem"):
        embedder(face, face[:, :1])
    with pytest.raises(ValueError, match="at least 1 channel: it has 0, got 0"):
        widen_stem(embedder, 0)
    widen_stem(embedder, 1)
    with pytest.raises(ValueError, match="widened by 1 channels: pass extra"):
        embedder(face)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 64, 64\), got \(1, 2, 64, 64\)"):
        embedder(face, face[:, :2])
    with pytest.raises(ValueError, match="widened once"):
        widen_stem(embedder, 1)
    embedder.extra_channels = 0
    with pytest.raises(ValueError, match="no convolution of three channels"):
        widen_stem(embedder, 1)


def test_trainable_includes_widened_stem() -> None:
    student, network = random_student(student_input="both", mask_channel=True)
    for blocks in (0, 2, 14, None):
        trained = [id(parameter) for parameter in student.trainable(blocks)]
        assert len(trained) == len(set(trained))
        assert id(network.stem[0].weight) in trained and id(network.head.weight) in trained
        assert (id(network.stem[1].weight) in trained) == (blocks is None)
    plain, network = random_student()
    assert [id(parameter) for parameter in plain.trainable(0)] == [id(network.head.weight)]


def test_projection() -> None:
    embedding = torch.rand(2, 5)
    assert torch.equal(Projection(5, 5)(embedding), embedding) and not list(Projection(5, 5).parameters())
    projection = Projection(5, 3)
    assert projection(torch.zeros(1, 5)).abs().max() == 0 and projection(embedding).shape == (2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = projection(embedding)
    torch.testing.assert_close(low, embedding @ projection.get_parameter("map.weight").T)
    with pytest.raises(ValueError, match="got 0 and 3"):
        Projection(0, 3)


def test_check_start_needs_pretrained_weights() -> None:
    student = random_student()[0]
    check_start(student, 128, 1.0)
    with pytest.raises(ValueError, match="back to random weights: give interpolation"):
        check_start(student, 128, 0.5)
    check_start(Student(create_embedder("dlib_resnet"), 128), 128, 0.5)


def test_teacher_without_weights_cannot_embed_bare_faces() -> None:
    teacher = create_embedder("dlib_resnet", pretrained=False)
    check_bare_faces("teacher", teacher)
    teacher.network = nn.Identity()
    check_bare_faces("student", teacher)
    with pytest.raises(ValueError, match="'dlib_resnet' has its weights in a file of another format: give"):
        check_bare_faces("teacher", teacher)


def test_load_student(tmp_path: Path) -> None:
    trained, path = random_student(student_input="both", mask_channel=True)[0], tmp_path / "a.ckpt"
    state = {f"average.module.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"stage": "distillation", "hyper_parameters": {}, "state_dict": state}, path)
    student = random_student(student_input="both", mask_channel=True)[0]
    load_student(student, path)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in student.state_dict().items())
    load_student(student, PRETRAINED)
    assert not all(map(torch.equal, student.state_dict().values(), trained.state_dict().values()))
    with pytest.raises(ValueError, match="do not fit Student"):
        load_student(random_student()[0], path)
    torch.save({"stage": "inpainting", "hyper_parameters": {}, "state_dict": state}, path)
    with pytest.raises(ValueError, match="'inpainting', not of 'distillation'"):
        load_student(student, path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in the model folder"):
        load_student(student, tmp_path)
