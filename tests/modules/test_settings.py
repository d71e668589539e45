"""Settings that contradict each other are refused in one line, before anything is trained."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from deocc.modules import DistillationModule, InpaintingModule
from tests.modules.test_distillation import _Data
from tests.modules.test_inpainting import SMALL, trainer_for

NOTHING = dict.fromkeys(
    ("identity_weight", "instance_weight", "pair_weight", "triplet_weight", "prediction_weight"), 0.0
)


def refused(module: type, message: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        module(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("student_input 'completed' needs a de-occluder", {"student_input": "completed"}),
        ("student_input 'both' needs a de-occluder", {"student_input": "both"}),
        ("back to random weights: give interpolation 1.0", {"student": "timm/resnet18", "interpolation": 0.75}),
        ("at least 0 and not all 0, got identity_weight 0.0, instance_weight 0.0", NOTHING),
        ("pair_weight -1", {"pair_weight": -1}),
        (
            "unknown recogniser option 'colour': choose among template, size, color",
            {"teacher_options": {"colour": "bgr"}},
        ),
        ("option mean is three numbers, got 127.5", {"student_options": {"mean": 127.5}}),
    ],
)
def test_stage_2_refuses(message: str, settings: dict[str, Any]) -> None:
    refused(DistillationModule, message, **{"student_input": "masked", **settings})


def test_a_trained_student_of_another_dimension_is_not_drawn_back_either(tmp_path: Path) -> None:
    """Its projection is random, though its other weights are not."""
    from deocc.networks import create_embedder

    torch.save(create_embedder("timm/resnet18").network.state_dict(), tmp_path / "resnet18.pth")
    settings = {
        "student_input": "masked",
        "student": "timm/resnet18",
        "student_weights": str(tmp_path / "resnet18.pth"),
    }
    refused(DistillationModule, "embeddings of 128 numbers", **settings, interpolation=0.5)
    DistillationModule(**settings, interpolation=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("adversarial_weight -0.1", {"adversarial_weight": -0.1}),
        (
            "not all 0",
            dict.fromkeys(("reconstruction_weight", "adversarial_weight", "identity_weight", "perceptual_weight"), 0),
        ),
        ("option size is a whole number of pixels, got '150'", {"teacher_options": {"size": "150"}}),
    ],
)
def test_stage_1_refuses(message: str, settings: dict[str, Any]) -> None:
    refused(InpaintingModule, message, **settings)


def test_stage_1_refuses_a_teacher_without_gradient(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Flatten()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(network, (torch.zeros(1, 3, 40, 40),), tmp_path / "net.onnx", dynamo=False)
    settings = {**SMALL, "teacher": "onnx", "teacher_weights": str(tmp_path / "net.onnx")}
    refused(InpaintingModule, "no gradient passes through the teacher 'onnx'", **settings)
    assert InpaintingModule(**settings, identity_weight=0, perceptual_weight=0).teacher is None  # type: ignore[arg-type]


def test_options_reach_teacher_and_student() -> None:
    options = {"color": "bgr", "mean": [1, 2, 3]}
    module = DistillationModule(student_input="masked", teacher_options=options)
    for embedder in (module.teacher, module.student.embedder):
        assert embedder.spec.color == "bgr" and embedder.mean.flatten().tolist() == [1, 2, 3]
        assert embedder(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
    module = DistillationModule(
        student_input="masked", student="timm/resnet18", teacher_options=options, student_options={"size": 96}
    )
    assert (module.student.embedder.spec.color, module.student.embedder.input_size) == ("rgb", 96)
    stage1 = InpaintingModule(**SMALL, teacher_options=options)  # type: ignore[arg-type]
    assert stage1.teacher is not None and stage1.teacher.spec.color == "bgr"


def test_a_deoccluder_that_is_to_come_with_a_checkpoint_opens_no_file_and_is_missed_in_training(tmp_path: Path) -> None:
    module = DistillationModule(inpainting_checkpoint="from_checkpoint")
    trainer = trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(ValueError, match="none was loaded: give a stage-1 run") as caught:
        trainer.fit(module, datamodule=_Data())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none was loaded"):
        module(torch.zeros(1, 3, 64, 64))
