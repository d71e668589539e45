"""Stage 2: which parameters learn, where the targets come from, what the average and the checkpoint hold."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from deocc.data import MaskedFaceDataModule
from deocc.data.face_set import Split
from deocc.modules import DistillationModule, InpaintingModule
from deocc.modules import evaluation as centers
from deocc.networks import Student, create_embedder
from deocc.networks.averaging import WeightAverage
from tests.modules.test_inpainting import SMALL, faces, fit, moved, snapshot, trainer_for


class _Data(MaskedFaceDataModule):
    """Two small crops of each of twenty people."""

    def __init__(self) -> None:
        super().__init__(size=64, batch_size=4, eval_batch_size=8, kinds=("surgical", "sunglasses"))

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return super()._chosen(split, indices)[::5]


def distil(folder: Path, steps: int = 1, **settings: Any) -> DistillationModule:
    module = DistillationModule(**{"student_input": "masked", **settings})
    trainer = trainer_for(folder, limit_train_batches=steps, limit_val_batches=0)
    trainer.fit(module, datamodule=_Data())
    return module


@pytest.fixture(scope="module")
def inpainting_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stage1")
    trainer = fit(
        InpaintingModule(**SMALL, identity_weight=0, perceptual_weight=0, adversarial_weight=0), folder, steps=1
    )
    trainer.save_checkpoint(folder / "a.ckpt")
    return str(folder / "a.ckpt")


def test_only_the_student_learns(inpainting_checkpoint: str, tmp_path: Path) -> None:
    module = DistillationModule(inpainting_checkpoint=inpainting_checkpoint)
    assert module.deoccluder is not None
    frozen = {"teacher": snapshot(module.teacher), "deoccluder": snapshot(module.deoccluder)}
    student = snapshot(module.student)
    trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=_Data())
    assert moved(module.student, student)
    assert not moved(module.teacher, frozen["teacher"]) and not moved(module.deoccluder, frozen["deoccluder"])


def test_the_centres_are_the_teachers_over_clean_training_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))  # other tests keep embeddings of all images of this set
    module = distil(tmp_path)
    data = _Data()
    raw, identity = [], []
    for batch in data.reference_dataloader():
        raw.append(module.teacher(batch["face"]))
        identity.append(batch["identity"])
    people, embeddings = torch.cat(identity), torch.cat(raw).detach()
    center = torch.stack([embeddings[people == person].mean(0) for person in range(20)]).mean(0)
    assert torch.allclose(module.center, center, atol=1e-5)
    expected = [
        normalize(normalize(embeddings[people == person] - center, dim=1).mean(0), dim=0) for person in range(20)
    ]
    assert torch.allclose(module.identity_centers, torch.stack(expected), atol=1e-5)


def test_centres_are_the_same_however_the_embeddings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    embeddings, identity = (
        generator.normal(size=(40, 6)).astype(np.float32),
        generator.permutation(np.arange(40) % 5 - 1),
    )
    expected = centers.identity_centers(embeddings, identity, torch.device("cpu"))
    monkeypatch.setattr(centers, "_CHUNK", 7)
    for found, value in zip(centers.identity_centers(embeddings, identity, torch.device("cpu")), expected, strict=True):
        torch.testing.assert_close(found, value)
    known = [torch.from_numpy(embeddings[identity == person]) for person in range(4)]
    center = torch.stack([rows.mean(0) for rows in known]).mean(0)
    directions = [normalize(normalize(rows - center, dim=1).mean(0), dim=0) for rows in known]
    torch.testing.assert_close(expected, (center, torch.stack(directions)))


@pytest.mark.parametrize("name", ["identity", "instance", "pair", "triplet", "prediction"])
def test_each_loss_alone_trains_and_a_weight_of_zero_leaves_it_out(name: str, tmp_path: Path) -> None:
    weights = {
        f"{other}_weight": float(other == name) for other in ("identity", "instance", "pair", "triplet", "prediction")
    }
    module = distil(tmp_path, **weights)
    assert moved(module.student, snapshot(DistillationModule(student_input="masked").student))
    terms = module._terms(torch.eye(128)[:3], torch.eye(128)[:3], faces())
    assert list(terms) == [name]
    assert (module.classifier is not None) == (name == "identity")


def test_training_the_last_blocks_leaves_the_first_alone(tmp_path: Path) -> None:
    module = distil(tmp_path, trainable_blocks=2)
    start = create_embedder("dlib_resnet")
    moved_blocks = [
        moved(block, snapshot(old))
        for block, old in zip(module.student.embedder.network.blocks, start.network.blocks, strict=True)
    ]
    assert moved_blocks == [False] * 12 + [True] * 2


@pytest.mark.parametrize("interpolation", [1.0, 0.5])
def test_the_weight_average_follows_its_recursion(interpolation: float) -> None:
    network = torch.nn.Linear(3, 2)
    start = copy.deepcopy(network)
    average = WeightAverage(network, decay=0.9, interpolation=interpolation)
    expected = start.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            network.weight += 1
        average.update(network)
        decay = min(0.9, step / (step + 9))
        target = start.weight + interpolation * (network.weight - start.weight)
        expected = decay * expected + (1 - decay) * target.detach()
    assert torch.allclose(average.network.weight, expected, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student_input", "mask_channel", "channels"), [("completed", False, 3), ("completed", True, 4), ("both", True, 7)]
)
def test_a_widened_student_starts_as_its_embedder(student_input: Any, mask_channel: bool, channels: int) -> None:
    batch = faces()
    completed = torch.flip(batch["face"], (-1,))
    student = Student(create_embedder("dlib_resnet"), 128, student_input, mask_channel)
    assert student.embedder.network.stem[0].in_channels == channels
    assert torch.allclose(
        student(batch["masked_face"], completed, batch["mask"]), create_embedder("dlib_resnet")(completed), atol=1e-6
    )


def test_the_student_on_masked_input_does_not_see_the_completion() -> None:
    batch = faces()
    student = Student(create_embedder("dlib_resnet"), 128, "masked")
    outputs = [student(batch["masked_face"], completed, batch["mask"]) for completed in (batch["face"], -batch["face"])]
    assert torch.equal(*outputs)


def test_another_students_dimension_is_projected(tmp_path: Path) -> None:
    module = distil(tmp_path, student="timm/resnet18", identity_weight=1.0)
    assert module.student.projection.map.weight.shape == (128, 512)
    assert module(faces()["masked_face"], faces()["mask"]).shape == (3, 128)


def test_a_checkpoint_holds_all_but_the_teacher_and_its_copy(inpainting_checkpoint: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "identity_weight": 1.0,
        "student_input": "both",
        "mask_channel": True,
        "interpolation": 0.5,
    }
    module = DistillationModule(inpainting_checkpoint, **settings)
    trainer = trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=_Data())
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    content = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith(("teacher.", "average.start."))]
    assert inpainting_checkpoint not in str(content["hyper_parameters"])
    Path(inpainting_checkpoint).rename(tmp_path / "moved away")
    try:
        again = DistillationModule.load_from_checkpoint(tmp_path / "b.ckpt", map_location="cpu")
    finally:
        (tmp_path / "moved away").rename(inpainting_checkpoint)
    batch = faces()
    for mask in (batch["mask"], None):
        assert torch.equal(again(batch["masked_face"], mask), module(batch["masked_face"], mask))
    states = [dict(kept.average.start.named_parameters()) for kept in (again, module) if kept.average.start is not None]
    assert len(states) == 2 and all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_embeddings_are_unit_vectors(tmp_path: Path) -> None:
    module = distil(tmp_path)
    assert torch.allclose(module(faces()["masked_face"], faces()["mask"]).norm(dim=1), torch.ones(3), atol=1e-5)


def test_without_a_deoccluder_a_mask_is_needed_by_a_student_that_sees_it_only() -> None:
    batch = faces()
    with pytest.raises(ValueError, match="no mask given, and no de-occluder"):
        DistillationModule(student_input="masked", mask_channel=True)(batch["masked_face"])
    module = DistillationModule(student_input="masked")
    expected = module(batch["masked_face"], batch["mask"])
    assert torch.equal(module(batch["masked_face"]), expected)
    predicted = module.predict_step(batch, 0)
    assert torch.equal(predicted["embedding"], expected) and torch.equal(
        predicted["completed_face"], batch["masked_face"]
    )
    assert predicted["mask"].shape == batch["mask"].shape and not predicted["mask"].any()


def test_prediction_completes_once(inpainting_checkpoint: str) -> None:
    module = DistillationModule(inpainting_checkpoint)
    assert module.deoccluder is not None
    completions: list[torch.Tensor] = []
    module.deoccluder.register_forward_hook(lambda _module, _inputs, output: completions.append(output))
    predicted = module.predict_step(faces(), 0)
    assert len(completions) == 1 and torch.equal(predicted["completed_face"], completions[0])
    assert torch.equal(predicted["embedding"], module(faces()["masked_face"], predicted["mask"]))


def test_a_student_on_masked_input_is_trained_without_completing_anything(inpainting_checkpoint: str) -> None:
    module = DistillationModule(inpainting_checkpoint, student_input="masked", instance_weight=0)
    assert module.deoccluder is not None
    module.deoccluder.register_forward_pre_hook(lambda _module, _inputs: pytest.fail("completed"))
    assert module.training_step(faces(), 0)["loss"].isfinite()
    assert module(faces()["masked_face"]).shape == (3, 128)


def test_the_new_channels_learn_where_only_the_last_blocks_are_trained(
    inpainting_checkpoint: str, tmp_path: Path
) -> None:
    module = DistillationModule(inpainting_checkpoint, student_input="both", mask_channel=True, trainable_blocks=1)
    trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=_Data())
    network: Any = module.student.embedder.network
    assert network.stem[0].weight[:, 3:].abs().amax((0, 2, 3)).gt(0).all()  # each of the four started at 0
    assert not moved(network.blocks[3], snapshot(create_embedder("dlib_resnet").network.blocks[3]))  # type: ignore[union-attr, index]


def _with_head(folder: Path, head: str, clip: float) -> tuple[DistillationModule, Path]:
    torch.manual_seed(0)
    module = DistillationModule(student_input="masked", identity_weight=1.0, identity_head=head, learning_rate=1e-3)  # type: ignore[arg-type]
    trainer = trainer_for(folder, limit_train_batches=2, limit_val_batches=0, gradient_clip_val=clip)
    trainer.fit(module, datamodule=_Data())
    trainer.save_checkpoint(folder / "a.ckpt")
    return module, folder / "a.ckpt"


def test_a_sharded_classifier_trains_clips_and_is_kept_as_a_full_one(tmp_path: Path) -> None:
    (full, _), (sharded, path) = (_with_head(tmp_path / head, head, clip=0.1) for head in ("full", "sharded"))
    assert full.classifier is not None and sharded.classifier is not None
    # Adam turns the rounding of a gradient near 0 into a step as long as any other, so single weights may differ: their norm may not.
    travelled = (full.classifier.weight - full.identity_centers).norm()
    assert travelled > 1e-2  # thousands of weights by 1e-3 a step
    assert (sharded.classifier.weight - full.classifier.weight).norm() < 1e-2 * travelled
    again = DistillationModule.load_from_checkpoint(path, map_location="cpu")
    assert again.classifier is not None and torch.equal(again.classifier.weight, sharded.classifier.weight)


def test_a_sharded_classifiers_gradients_are_clipped_by_the_module(tmp_path: Path) -> None:
    module, _ = _with_head(tmp_path, "sharded", clip=0.1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    for parameter in module.student.parameters():
        parameter.grad = None
    assert module.classifier is not None
    module.classifier.weight.grad = torch.ones_like(module.classifier.weight).to_sparse(1)  # as sampling leaves it
    module.configure_gradient_clipping(optimizer, 0.1, "norm")
    assert float(module.classifier.weight.grad.to_dense().norm()) == pytest.approx(0.1, rel=1e-4)
