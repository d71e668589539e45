"""Stage 1: which networks learn, which losses are computed, what a checkpoint contains, which settings are refused."""

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from deocc.losses import mask_segmentation_loss
from deocc.modules import InpaintingModule
from deocc.modules.optimization import split_micro_batches
from deocc.networks import Deoccluder
from tests.modules.training import GENERATOR_ONLY, NO_TEACHER, SMALL, export_onnx, faces, fit, moved, snapshot


@pytest.mark.parametrize("adversarial", ["hinge", "wgan"])
def test_step_trains_all_but_teacher(adversarial: Literal["hinge", "wgan"], tmp_path: Path) -> None:
    module = InpaintingModule(**SMALL, adversarial=adversarial)
    names = ("generator", "segmenter", "discriminator", "average", "teacher")
    before = {name: snapshot(getattr(module, name)) for name in names}
    fit(module, tmp_path)
    assert {name: moved(getattr(module, name), before[name]) for name in names} == dict.fromkeys(names, True) | {
        "teacher": False
    }


def test_generator_alone(tmp_path: Path) -> None:
    """Unused networks are not built, and the average lags behind the generator."""
    module = InpaintingModule(**SMALL, **GENERATOR_ONLY, ema_decay=0.9)
    assert module.discriminator is None and module.teacher is None
    fit(module, tmp_path, steps=3)
    assert moved(module.average.module, snapshot(module.generator))


def test_loss_falls_on_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, batch, errors = InpaintingModule(**SMALL, **GENERATOR_ONLY, learning_rate=3e-3), faces(), []
    for steps in (40, 0):
        with torch.no_grad():
            errors.append(float((module.generator(batch["masked_face"], batch["mask"]) - batch["face"]).abs().mean()))
        if steps:
            fit(module, tmp_path, steps=steps, batch=batch)
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_visible_pixels_unchanged(precision: str, tmp_path: Path) -> None:
    module, batch = InpaintingModule(**SMALL), faces()
    fit(module, tmp_path, precision=precision)
    completed = module(batch["masked_face"], batch["mask"])
    visible = (batch["mask"] == 0).expand_as(completed)
    assert torch.equal(completed[visible], batch["face"][visible])


def test_checkpoint_without_teacher(tmp_path: Path) -> None:
    module, batch, path = InpaintingModule(**SMALL), faces(), tmp_path / "a.ckpt"
    fit(module, tmp_path).save_checkpoint(path)
    assert not [key for key in torch.load(path, weights_only=True)["state_dict"] if key.startswith("teacher.")]
    expected = module(batch["masked_face"], batch["mask"])
    deoccluder = Deoccluder.from_checkpoint(path)
    torch.testing.assert_close(deoccluder(batch["masked_face"], batch["mask"]), expected)
    again = InpaintingModule.load_from_checkpoint(path, map_location="cpu")
    assert torch.equal(again(batch["masked_face"], batch["mask"]), expected)


def test_mask_noise_spares_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = InpaintingModule(**SMALL, **GENERATOR_ONLY, mask_noise=True), faces()
    targets: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []

    def record(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        targets.append(mask)
        return mask_segmentation_loss(logits, mask)

    monkeypatch.setattr("deocc.losses.mask_segmentation_loss", record)
    module.generator.register_forward_pre_hook(lambda _module, given: inputs.append(given[1]))
    fit(module, tmp_path, steps=1, batch=batch)
    assert torch.equal(targets[0], batch["mask"]) and not torch.equal(inputs[0], batch["mask"])


@pytest.mark.parametrize("name", ["identity", "perceptual"])
def test_teacher_terms_separate(name: str) -> None:
    module = InpaintingModule(**SMALL, **{**GENERATOR_ONLY, f"{name}_weight": 1})
    (micro_batch,) = split_micro_batches(faces(), 1, torch.clone)
    terms = module._generator_terms(micro_batch, micro_batch.batch["face"])
    assert set(terms) == {"reconstruction", "segmentation", name}


def test_gradient_penalty_seeded_by_images() -> None:
    module, batch, losses = InpaintingModule(**SMALL, **NO_TEACHER, adversarial="wgan"), faces(), []
    for global_seed, seed in ((1, batch["seed"]), (2, batch["seed"]), (2, batch["seed"] + 1)):
        torch.manual_seed(global_seed)
        fresh = copy.deepcopy(module)  # spectral normalisation changes the discriminators in every call
        losses.append(fresh._discriminator_loss({**batch, "seed": seed}, -batch["face"]))
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[1], losses[2])


ALL_WEIGHTS = ("reconstruction_weight", "chroma_weight", "adversarial_weight", "identity_weight", "perceptual_weight")


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("adversarial_weight -0.1", {"adversarial_weight": -0.1}),
        ("not all 0", dict.fromkeys(ALL_WEIGHTS, 0)),
        ("option size is a whole number of pixels, got '150'", {"teacher_options": {"size": "150"}}),
        ("accumulate must be at least 1", {"accumulate": 0}),
    ],
)
def test_settings_refused(message: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        InpaintingModule(**SMALL, **settings)
    assert "\n" not in str(caught.value)


def test_teacher_without_gradient_refused(tmp_path: Path) -> None:
    weights = export_onnx(tmp_path / "net.onnx", torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Flatten()))
    settings = {**SMALL, "teacher": "onnx", "teacher_weights": weights}
    with pytest.raises(ValueError, match="no gradient passes through the teacher 'onnx'"):
        InpaintingModule(**settings)
    assert InpaintingModule(**settings, **NO_TEACHER).teacher is None


def test_teacher_options() -> None:
    module = InpaintingModule(**SMALL, teacher_options={"color": "bgr"})
    assert module.teacher is not None and module.teacher.spec.color == "bgr"
