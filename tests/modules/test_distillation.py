"""Stage 2: which parameters learn, the running average, what a checkpoint contains, which settings are refused."""

import copy
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from deocc import losses
from deocc.inference.model_folder import PRETRAINED
from deocc.modules import DistillationModule
from deocc.modules.distillation import StudentAverage
from deocc.networks import Student, create_embedder
from deocc.networks.embedders.embedder import centred, unit_embedding
from deocc.networks.weights import read_model_folder, sub_state
from tests.modules.training import OrlSubset, faces, fit_orl, moved, snapshot, stage1_checkpoint, trainer_for

LOSSES = ("identity", "instance", "pair", "triplet", "prediction")


def distil(folder: Path, steps: int = 1, **settings: Any) -> DistillationModule:
    module = DistillationModule(**{"student_input": "masked", **settings})
    fit_orl(module, folder, steps)
    return module


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stage1_checkpoint(tmp_path_factory.mktemp("stage1"))


def test_only_student_learns(stage1: str, tmp_path: Path) -> None:
    module = DistillationModule(stage1)
    names = ("student", "teacher", "deoccluder")
    before = {name: snapshot(getattr(module, name)) for name in names}
    fit_orl(module, tmp_path)
    learned = {name: moved(getattr(module, name), before[name]) for name in names}
    assert learned == {"student": True, "teacher": False, "deoccluder": False}


def test_centers_from_clean_training_faces(tmp_path: Path) -> None:
    module = distil(tmp_path)
    batches = list(OrlSubset().reference_dataloader())
    identity = torch.cat([batch["identity"] for batch in batches])
    raw = torch.cat([module.teacher(batch["face"]) for batch in batches]).detach()
    center = torch.stack([raw[identity == label].mean(0) for label in range(20)]).mean(0)
    assert torch.allclose(module.center, center, atol=1e-5)
    unit = unit_embedding(raw, center)
    expected = [normalize(unit[identity == label].mean(0), dim=0) for label in range(20)]
    assert torch.allclose(module.identity_centers, torch.stack(expected), atol=1e-5)


def test_losses_of_unit_embeddings(tmp_path: Path) -> None:
    """Relations and soft targets see the embeddings that a test compares, the identity loss centred ones."""
    module = distil(tmp_path, identity_weight=1.0, instance_weight=1.0, beta=0.5)
    batch = next(iter(OrlSubset().reference_dataloader()))
    batch = {**batch, "mixup_weight": torch.zeros(len(batch["identity"]), 2)}
    raw = module.teacher(batch["face"]).detach() * 2 + 0.1
    teacher = module._embed_teacher(batch["face"])
    terms, unit = module._terms(raw, teacher, cast(Any, batch)), unit_embedding(raw, module.center)
    assert_close = torch.testing.assert_close
    assert_close(terms["pair"], 10 * losses.pair_relation_loss(unit, teacher))
    assert_close(terms["triplet"], 20 * losses.triplet_relation_loss(unit, teacher))
    centers = module.identity_centers[batch["identity"]]
    assert_close(terms["instance"], losses.instance_relation_loss(unit, teacher, centers, 0.5))
    classifier = cast(nn.Module, module.classifier)
    assert_close(terms["identity"], classifier(centred(raw, module.center), batch["identity"]))


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_alone(name: str, tmp_path: Path) -> None:
    weights: dict[str, Any] = {f"{other}_weight": float(other == name) for other in LOSSES}
    module = distil(tmp_path, **weights)
    assert moved(module.student, snapshot(DistillationModule(student_input="masked").student))
    assert list(module._terms(torch.eye(128)[:3], torch.eye(128)[:3], faces())) == [name]
    assert (module.classifier is not None) == (name == "identity")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_last_blocks_train_alone(optimizer: str, tmp_path: Path) -> None:
    module = distil(tmp_path, trainable_blocks=2, optimizer=optimizer)
    trained: Any = module.student.embedder.network
    start: Any = create_embedder("dlib_resnet").network
    learned = [moved(block, snapshot(old)) for block, old in zip(trained.blocks, start.blocks, strict=True)]
    assert learned == [False] * 12 + [True] * 2


def test_new_channels_train_with_last_blocks(stage1: str, tmp_path: Path) -> None:
    module = DistillationModule(stage1, student_input="both", mask_channel=True, trainable_blocks=1)
    fit_orl(module, tmp_path)
    network: Any = module.student.embedder.network
    start: Any = create_embedder("dlib_resnet").network
    assert network.stem[0].weight[:, 3:].abs().amax((0, 2, 3)).gt(0).all()  # each of the four started at 0
    assert not moved(network.blocks[3], snapshot(start.blocks[3]))


@pytest.mark.parametrize("interpolation", [1.0, 0.5])
def test_average_follows_recursion(interpolation: float) -> None:
    network = nn.Linear(3, 2)
    start = network.weight.detach().clone()
    average: Any = StudentAverage(network, decay=0.9, interpolation=interpolation)
    expected = start
    for step in range(1, 100):
        with torch.no_grad():
            network.weight += 1
        average.update_parameters(network)
        decay = min(0.9, step / (step + 9))
        target = start + interpolation * (network.weight.detach() - start)
        expected = decay * expected + (1 - decay) * target
    assert torch.allclose(average.module.weight, expected, atol=1e-4)


@pytest.mark.parametrize("interpolation", [1.0, 0.5])
def test_average_interpolates_running_statistics(interpolation: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    start: Any = copy.deepcopy(network[1])
    average: Any = StudentAverage(network, decay=0.9, interpolation=interpolation).train()
    for _ in range(3):
        network(torch.randn(5, 3, 2, 2) * 4 + 7)
        average.update_parameters(network)
    for name in ("running_mean", "running_var"):
        old, new = getattr(start, name), getattr(network[1], name)
        assert not torch.allclose(old, new)
        torch.testing.assert_close(getattr(average.module[1], name), old + interpolation * (new - old))
    assert average.module[1].num_batches_tracked == 3
    assert not any(module.training for module in average.modules())


@pytest.mark.parametrize(("decay", "interpolation"), [(1.0, 1.0), (-0.1, 1.0), (0.9, 0.0), (0.9, 1.1)])
def test_average_refuses_bad_decay(decay: float, interpolation: float) -> None:
    with pytest.raises(ValueError, match="expected decay in"):
        StudentAverage(nn.Linear(2, 2), decay, interpolation)


@pytest.mark.parametrize(
    ("student_input", "mask_channel", "channels"), [("completed", False, 3), ("completed", True, 4), ("both", True, 7)]
)
def test_widened_student_starts_as_embedder(student_input: Any, mask_channel: bool, channels: int) -> None:
    batch = faces()
    completed = torch.flip(batch["face"], (-1,))
    student = Student(create_embedder("dlib_resnet"), 128, student_input, mask_channel)
    network: Any = student.embedder.network
    assert network.stem[0].in_channels == channels
    embedding = student(batch["masked_face"], completed, batch["mask"])
    assert torch.allclose(embedding, create_embedder("dlib_resnet")(completed), atol=1e-6)


def test_projected_student(tmp_path: Path) -> None:
    module = distil(tmp_path, student="timm/resnet18", identity_weight=1.0)
    assert module.student.projection.map.weight.shape == (128, 512)
    embedding = module(faces()["masked_face"], faces()["mask"])
    assert embedding.shape == (3, 128)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3), atol=1e-5)


def test_masked_student_never_completes(stage1: str) -> None:
    module, batch = DistillationModule(stage1, student_input="masked", instance_weight=0), faces()
    assert module.deoccluder is not None
    module.deoccluder.register_forward_pre_hook(lambda _module, _inputs: pytest.fail("completed"))
    assert module.training_step(batch, 0).isfinite()
    assert module(batch["masked_face"]).shape == (3, 128)
    outputs = [module.student(batch["masked_face"], face, batch["mask"]) for face in (batch["face"], -batch["face"])]
    assert torch.equal(*outputs)


def test_checkpoint_contents(stage1: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"identity_weight": 1.0, "student_input": "both", "mask_channel": True}
    module, path = DistillationModule(stage1, interpolation=0.5, **settings), tmp_path / "b.ckpt"
    fit_orl(module, tmp_path).save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith(("teacher.", "average.start."))]
    assert stage1 not in str(content["hyper_parameters"])
    Path(stage1).rename(tmp_path / "elsewhere")  # the checkpoint contains the de-occluder
    try:
        again = DistillationModule.load_from_checkpoint(path, map_location="cpu")
    finally:
        (tmp_path / "elsewhere").rename(stage1)
    batch = faces()
    for mask in (batch["mask"], None):
        assert torch.equal(again(batch["masked_face"], mask), module(batch["masked_face"], mask))
    assert module.average.start is not None and again.average.start is not None
    assert not moved(again.average.start, snapshot(module.average.start))


def with_head(folder: Path, head: Literal["full", "sharded"]) -> tuple[DistillationModule, Path]:
    torch.manual_seed(0)
    module = DistillationModule(student_input="masked", identity_weight=1.0, identity_head=head, learning_rate=1e-3)
    fit_orl(module, folder, steps=2, gradient_clip_val=0.1).save_checkpoint(folder / "a.ckpt")
    return module, folder / "a.ckpt"


def test_sharded_head_trains_as_full_head(tmp_path: Path) -> None:
    (full, _), (sharded, path) = with_head(tmp_path / "full", "full"), with_head(tmp_path / "sharded", "sharded")
    assert full.classifier is not None and sharded.classifier is not None
    # Adam turns the rounding of a gradient near 0 into a whole step: single weights may differ, their norm may not.
    travelled = (full.classifier.weight - full.identity_centers).norm()
    assert travelled > 1e-2
    assert (sharded.classifier.weight - full.classifier.weight).norm() < 1e-2 * travelled
    again = DistillationModule.load_from_checkpoint(path, map_location="cpu")
    assert again.classifier is not None and torch.equal(again.classifier.weight, sharded.classifier.weight)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.0)
    again.classifier.weight.grad = torch.ones_like(again.classifier.weight)
    again.configure_gradient_clipping(optimizer, 0.1, "norm")
    assert float(again.classifier.weight.grad.norm()) == pytest.approx(0.1, rel=1e-4)


NO_LOSS = {f"{name}_weight": 0.0 for name in LOSSES}


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("student_input 'completed' needs a de-occluder", {"student_input": "completed"}),
        ("student_input 'both' needs a de-occluder", {"student_input": "both"}),
        ("back to random weights: give interpolation 1.0", {"student": "timm/resnet18", "interpolation": 0.75}),
        ("at least 0 and not all 0, got identity_weight 0.0, instance_weight 0.0", NO_LOSS),
        ("pair_weight -1", {"pair_weight": -1}),
        (r"beta must be in \[0, 1\], got -0.1", {"beta": -0.1}),
        ("scale must be positive, got 0", {"scale": 0}),
        ("temperature must be positive, got 0", {"temperature": 0}),
        ("unknown recogniser option 'colour': choose among", {"teacher_options": {"colour": "bgr"}}),
        ("option mean is three numbers, got 127.5", {"student_options": {"mean": 127.5}}),
        ("unknown identity_head 'split': choose one of full, sharded", {"identity_head": "split"}),
        ("identity_sample_share 0.5 needs identity_head sharded", {"identity_sample_share": 0.5}),
        (r"must be in \(0, 1\], got 0.0", {"identity_head": "sharded", "identity_sample_share": 0.0}),
    ],
)
def test_settings_refused(message: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DistillationModule(**{"student_input": "masked", **settings})
    assert "\n" not in str(caught.value)


def test_random_projection_not_interpolated(tmp_path: Path) -> None:
    torch.save(create_embedder("timm/resnet18").network.state_dict(), tmp_path / "resnet18.pth")
    settings: dict[str, Any] = {"student": "timm/resnet18", "student_weights": str(tmp_path / "resnet18.pth")}
    with pytest.raises(ValueError, match="embeddings of 128 numbers"):
        DistillationModule(student_input="masked", **settings, interpolation=0.5)
    DistillationModule(student_input="masked", **settings, interpolation=1.0)


def test_embedder_options() -> None:
    options = {"color": "bgr", "mean": [1, 2, 3]}
    module = DistillationModule(student_input="masked", teacher_options=options)
    for embedder in (module.teacher, module.student.embedder):
        assert embedder.spec.color == "bgr" and embedder.mean.flatten().tolist() == [1, 2, 3]
        assert embedder(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
    own: dict[str, Any] = {"student": "timm/resnet18", "student_options": {"size": 96}}
    module = DistillationModule(student_input="masked", teacher_options=options, **own)
    assert (module.student.embedder.spec.color, module.student.embedder.input_size) == ("rgb", 96)


def test_initial_weights() -> None:
    folder = str(PRETRAINED)
    settings: dict[str, Any] = {"inpainting_checkpoint": folder, "student_input": "both", "mask_channel": True}
    module = DistillationModule(**settings, initial_weights=folder)
    expected = sub_state(read_model_folder(PRETRAINED)[1], "student.")
    for student in (module.student, module.average.module):
        state = student.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    assert module.hparams["initial_weights"] == "from_checkpoint"
    with pytest.raises(ValueError, match="do not fit Student"):
        DistillationModule(folder, initial_weights=folder)


def test_start_of_initial_weights_is_resumed(tmp_path: Path) -> None:
    """Without the file of the start, also by a run that has been resumed before."""
    settings: dict[str, Any] = {"student": "timm/resnet18", "student_input": "masked"}
    first, path = DistillationModule(**settings), tmp_path / "b.ckpt"
    fit_orl(first, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    module = DistillationModule(**settings, initial_weights=str(tmp_path / "a.ckpt"), interpolation=0.5)
    trainer, start = fit_orl(module, tmp_path), first.average.module
    for resumed in (False, True):
        trainer.save_checkpoint(path)
        again = DistillationModule.load_from_checkpoint(path, map_location="cpu")
        assert again.average.start is not None and not moved(again.average.start, snapshot(start))
        if not resumed:
            module = DistillationModule(**settings, initial_weights="from_checkpoint", interpolation=0.5)
            trainer = trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0, max_epochs=2)
            trainer.fit(module, datamodule=OrlSubset(), ckpt_path=path)


@pytest.mark.parametrize("blocks", [None, 2])
def test_frozen_blocks_before_ddp(blocks: int | None) -> None:
    """DDP waits for the gradients of all parameters that are trainable when it wraps the module."""
    module = DistillationModule(student_input="masked", trainable_blocks=blocks)
    chosen = {id(parameter) for parameter in module.student.trainable(blocks)}
    found = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert found == chosen and len(chosen) > 0


def test_missing_deoccluder_checkpoint(tmp_path: Path) -> None:
    module = DistillationModule(inpainting_checkpoint="from_checkpoint")
    with pytest.raises(ValueError, match="none was loaded: give a stage-1 run") as caught:
        fit_orl(module, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none was loaded"):
        module(torch.zeros(1, 3, 64, 64))
