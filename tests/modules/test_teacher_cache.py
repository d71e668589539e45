"""The teacher's embeddings from the file are those it would compute, whoever computed them; no other file is taken for it."""

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule
from deocc.modules.teacher_cache import TeacherCache
from deocc.networks import Embedder, create_teacher
from deocc.networks.embedders.registry import teacher_fingerprint
from tests.data.conftest import TinyFaces
from tests.modules.test_inpainting import trainer_for

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
SIZE, IMAGES = 48, 24


class Noise(TinyFaces):
    """Twelve training images that no two are alike in, nor like their mirror images."""

    def image(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (9, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)


class Data(MaskedFaceDataModule):
    def __init__(self, augmentation: Any = "flip", **settings: Any) -> None:
        super().__init__(
            Noise(), **{"size": SIZE, "batch_size": 4, "eval_batch_size": 5, "augmentation": augmentation, **settings}
        )


class Unknown(Data):
    """The same faces, of which nothing is said to be known beforehand."""

    @property
    def plain_views(self) -> tuple[bool, ...]:
        return ()


class Counting(pl.Callback):
    """Counts the faces that the teacher looks at, and keeps the losses."""

    def __init__(self) -> None:
        self.before, self.faces, self.losses = 0, 0, []  # type: ignore[var-annotated]

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.teacher.register_forward_pre_hook(self._count)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = self.faces

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def _count(self, _teacher: Any, inputs: tuple[Tensor, ...]) -> None:
        self.faces += len(inputs[0])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie."""
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


@pytest.fixture(scope="module")
def teacher() -> Embedder:
    return create_teacher("dlib_resnet")


def fit(
    folder: Path, data: Data, steps: int = 3, epochs: int = 1, **further: Any
) -> tuple[DistillationModule, Counting]:
    module, counting = DistillationModule(student_input="masked"), Counting()
    length: dict[str, Any] = {"max_epochs": epochs, "limit_train_batches": steps, "limit_val_batches": 0}
    trainer = pl.Trainer(**length, **QUIET, default_root_dir=folder, accelerator="cpu", callbacks=[counting])
    trainer.fit(module, datamodule=data, **further)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, counting


def read(folder: Path, data: Data, teacher: Embedder) -> TeacherCache:
    trainer = trainer_for(folder)
    trainer.datamodule = data  # type: ignore[attr-defined]
    return TeacherCache(teacher, trainer, data.plain_views)


def aligned(data: Data) -> dict[int, Tensor]:
    """The training faces by position in the face set."""
    batches = list(data.reference_dataloader())
    index, faces = (torch.cat([batch[key] for batch in batches]) for key in ("index", "face"))
    return dict(zip(index.tolist(), faces, strict=True))


def computed(teacher: Embedder, data: Data, flipped: bool) -> NDArray[np.float32]:
    """(N, D) by one face at a time."""
    rows = np.zeros((IMAGES, teacher.embedding_dim), np.float32)
    with torch.no_grad():
        for index, face in aligned(data).items():
            seen = torch.from_numpy(face.numpy()[:, :, ::-1].copy()) if flipped else face
            rows[index] = teacher(seen[None])[0].numpy()
    return rows


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_is_looked_up_is_what_the_teacher_gives_for_the_training_face(teacher: Embedder, tmp_path: Path) -> None:
    data = Data()
    known, flips = read(tmp_path, data, teacher), []
    assert known.knows_training
    for epoch in range(2):
        loader: Any = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                assert_close(known.look_up(batch), teacher(batch["face"]))
            flips.extend(batch["flipped"].tolist())
    assert 4 < sum(flips) < 20
    assert np.abs(computed(teacher, data, flipped=False) - computed(teacher, data, flipped=True)).max() > 0.01


@pytest.mark.parametrize("augmentation", ["none", "flip", "light", "strong"])
def test_a_face_said_to_be_plain_has_the_very_pixels_of_the_aligned_face_or_of_its_mirror_image(
    augmentation: str,
) -> None:
    data, same = Data(augmentation), []
    plain = aligned(data)
    for batch in data.train_dataloader():
        for face, index, flipped in zip(batch["face"], batch["index"].tolist(), batch["flipped"], strict=True):
            same.append(torch.equal(face, plain[index].flip(-1) if flipped else plain[index]))
    assert len(same) == 12 and all(same) == bool(data.plain_views)
    assert not Data("flip", blend_probability=0.1).plain_views


def test_the_losses_are_the_same_and_the_teacher_does_not_run_in_training(tmp_path: Path) -> None:
    with_cache, counted = fit(tmp_path, Data())
    without, running = fit(tmp_path, Unknown())
    assert (running.before, running.faces) == (0, 12) and (counted.before, counted.faces) == (24, 24)
    assert len(counted.losses) == 3
    assert_close(counted.losses, running.losses)
    assert_close(with_cache.identity_centers, without.identity_centers)


class Batches(pl.Callback):
    """Keeps the training batches as the module gets them."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)


def test_teacher_view_aligned_embeds_aligned_faces(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    data, kept, counting = Data("strong", masks_per_face=2), Batches(), Counting()
    length: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    trainer = pl.Trainer(**length, **QUIET, default_root_dir=tmp_path, accelerator="cpu", callbacks=[kept, counting])
    trainer.fit(DistillationModule(student_input="masked", teacher_view="aligned"), datamodule=data)
    expected = computed(teacher, data, flipped=False)
    assert len(kept.batches) == 3 and any(batch["flipped"].any() for batch in kept.batches)
    for batch in kept.batches:
        assert len(batch["teacher_embedding"]) == len(batch["face"]) == 8
        assert_close(batch["teacher_embedding"], expected[batch["index"]])
        with torch.no_grad():
            assert (
                teacher(batch["face"]) - batch["teacher_embedding"]
            ).abs().max() > 0.01  # the augmented face has another
    assert counting.before == counting.faces == 12 and len(list(cache.iterdir())) == 1


def test_teacher_view_aligned_refuses_blends(tmp_path: Path) -> None:
    module = DistillationModule(student_input="masked", teacher_view="aligned")
    trainer = trainer_for(tmp_path, limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(
        ValueError, match=r"teacher_view aligned knows no blended faces: set data\.blend_probability to 0"
    ):
        trainer.fit(module, datamodule=Data("none", blend_probability=0.5))


@pytest.mark.parametrize(("augmentation", "views"), [("strong", 1), ("none", 1), ("flip", 2)])
def test_no_view_is_computed_that_is_not_used_and_none_twice(
    augmentation: str, views: int, tmp_path: Path, cache: Path
) -> None:
    first, again = fit(tmp_path, Data(augmentation), steps=1), fit(tmp_path, Data(augmentation), steps=1)
    assert (first[1].before, again[1].before) == (12 * views, 0)
    assert len(list(cache.iterdir())) == views
    assert torch.equal(first[0].identity_centers, again[0].identity_centers)


def test_a_resumed_training_uses_it_and_makes_it_where_it_is_gone(tmp_path: Path, cache: Path) -> None:
    fit(tmp_path, Data(), steps=1)
    kept = tmp_path / "kept.ckpt"
    (tmp_path / "last.ckpt").rename(kept)
    assert not any("cache" in key for key in torch.load(kept, weights_only=True)["state_dict"])
    for faces in (0, 24):
        counting = fit(tmp_path, Data(), steps=1, epochs=2, ckpt_path=kept)[1]
        assert counting.faces == faces and len(counting.losses) == 1
        for file in cache.iterdir():
            file.unlink()


def test_validation_within_a_training_runs_the_teacher(tmp_path: Path) -> None:
    module, counting = DistillationModule(student_input="masked"), Counting()
    trainer = trainer_for(
        tmp_path, limit_train_batches=1, limit_val_batches=1, callbacks=[counting], enable_checkpointing=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics without pairs
        trainer.fit(module, datamodule=Data(kinds=("box",)))
    assert counting.faces == 24 + 2 * (5 + 5)  # the sanity check and the epoch's end: clean and masked faces


def test_another_teacher_or_other_data_are_another_file(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    def number_of_files(data: Data, teacher: Embedder) -> int:
        read(tmp_path, data, teacher)
        return len(list(cache.iterdir()))

    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters())[0] += 1e-6
    moved, repainted = Data("none"), Data("none")
    moved.face_set.landmarks = moved.face_set.landmarks + 1.0
    repainted.face_set.image = lambda index: np.full((72, 72, 3), index, np.uint8)  # type: ignore[method-assign]
    cases = [
        (Data("none"), teacher),
        (Data("none"), other),
        (Data("none", size=64), teacher),
        (moved, teacher),
        (repainted, teacher),
    ]
    assert [number_of_files(*case) for case in cases] == [1, 2, 3, 4, 5]
    assert number_of_files(Data("none", batch_size=2, seed=5), create_teacher("dlib_resnet")) == 5


@pytest.mark.parametrize(
    "options", [{"color": "bgr"}, {"template": "arcface"}, {"size": 140}, {"mean": (1.0, 2.0, 3.0)}]
)
def test_the_fingerprint_tells_what_a_teacher_expects(options: dict[str, Any], teacher: Embedder) -> None:
    assert teacher_fingerprint(create_teacher("dlib_resnet", **options)) != teacher_fingerprint(teacher)


def test_the_fingerprint_of_a_teacher_without_parameters_is_that_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    found: list[str] = []
    for pool in (10, 20, 10):
        path = tmp_path / f"{len(found)}.onnx"
        network = torch.nn.Sequential(
            torch.nn.AvgPool2d(pool), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            torch.onnx.export(network, (torch.zeros(1, 3, 40, 40),), path, dynamo=False)
        found.append(teacher_fingerprint(create_teacher("onnx", str(path))))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other shape"])
def test_a_file_that_is_not_whole_is_made_again(damage: str, teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    data = Data("none")
    read(tmp_path, data, teacher)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    if damage == "other shape":
        np.save(path, np.zeros((IMAGES, 3), np.float32))
    else:
        path.write_bytes({"cut": content[:-1], "empty": b"", "text": b"nothing"}[damage])
    assert_close(read(tmp_path, data, teacher).faces, computed(teacher, data, flipped=False))
    assert path.read_bytes() == content


def test_an_interrupted_computation_leaves_nothing_behind(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    data, calls = Data("none"), []

    def interrupt(_teacher: Any, inputs: tuple[Tensor, ...]) -> None:
        calls.append(sorted(path.suffix for path in cache.iterdir()))
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = teacher.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, data, teacher)
    hook.remove()
    assert calls == [[".tmp"]] * 2 and list(cache.iterdir()) == []


def test_without_room_on_disk_a_warning_is_given_and_the_faces_as_they_are_stay_in_memory(
    teacher: Embedder, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.warns(UserWarning, match=r"cannot keep .*0\.0 GB are needed.*set DEOCC_CACHE"):
        known = read(tmp_path, Data(), teacher)
    assert not known.knows_training and list(cache.iterdir()) == []
    assert_close(known.faces, computed(teacher, Data(), flipped=False))


def test_where_no_file_can_be_written_the_teacher_runs_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module, counting = fit(tmp_path, Data())
    assert (counting.before, counting.faces) == (12, 24) and module.identity_centers.shape == (4, 128)
    assert sum("cannot keep the teacher's embeddings" in str(warning.message) for warning in told) == 1
