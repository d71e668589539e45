"""Cached embeddings equal the teacher's, however many ranks computed them; damaged and foreign files are not used."""

import deocc._torchvision  # isort: skip  # noqa: F401  # before Lightning, also in spawned processes

import copy
import os
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule
from deocc.modules.teacher_cache import Draft, TeacherCache, open_rows
from deocc.networks import Embedder, create_teacher
from deocc.networks.embedders.registry import teacher_fingerprint
from tests.data.conftest import TinyFaces
from tests.losses.spawning import PROCESSES, run_processes
from tests.modules.training import export_onnx, trainer_for

SIZE, IMAGES = 48, 24


class Noise(TinyFaces):
    """Twelve training images, all different from each other and from their mirror images."""

    def image(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (9, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)


class Data(MaskedFaceDataModule):
    def __init__(self, augmentation: Any = "flip", **settings: Any) -> None:
        sizes: dict[str, Any] = {"size": SIZE, "batch_size": 4, "eval_batch_size": 5}
        super().__init__(Noise(), **{**sizes, "augmentation": augmentation, **settings})


class NoPlainViews(Data):
    """The same faces, which the cache cannot know."""

    @property
    def plain_views(self) -> tuple[bool, ...]:
        return ()


class Counter(pl.Callback):
    """Count the faces that the teacher embeds; record training batches and losses."""

    def __init__(self) -> None:
        self.before, self.faces = 0, 0
        self.losses: list[float] = []
        self.batches: list[dict[str, Tensor]] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.teacher.register_forward_pre_hook(self._count)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = self.faces

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.batches.append(batch)

    def _count(self, _teacher: Any, inputs: tuple[Tensor, ...]) -> None:
        self.faces += len(inputs[0])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the files."""
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


@pytest.fixture(scope="module")
def teacher() -> Embedder:
    return create_teacher("dlib_resnet")


def fit(
    folder: Path, data: Data, steps: int = 3, epochs: int = 1, start: Path | None = None, **settings: Any
) -> tuple[DistillationModule, Counter]:
    module, counter = DistillationModule(**{"student_input": "masked", **settings}), Counter()
    length: dict[str, Any] = {"max_epochs": epochs, "limit_train_batches": steps, "limit_val_batches": 0}
    trainer = trainer_for(folder, **length, enable_checkpointing=False, callbacks=[counter])
    trainer.fit(module, datamodule=data, ckpt_path=start)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, counter


def read(folder: Path, data: Data, teacher: Embedder) -> TeacherCache:
    trainer = trainer_for(folder)
    trainer.datamodule = data  # type: ignore[attr-defined]
    return TeacherCache(teacher, trainer, data.plain_views)


def aligned(data: Data) -> dict[int, Tensor]:
    """Return the aligned training faces by position in the face set."""
    batches = list(data.reference_dataloader())
    index, faces = (torch.cat([batch[key] for batch in batches]) for key in ("index", "face"))
    return dict(zip(index.tolist(), faces, strict=True))


@torch.no_grad()
def computed(teacher: Embedder, data: Data, flipped: bool) -> NDArray[np.float32]:
    """Return embeddings (N, D), computed one face at a time."""
    rows = np.zeros((IMAGES, teacher.embedding_dim), np.float32)
    for index, face in aligned(data).items():
        rows[index] = teacher((face.flip(-1) if flipped else face)[None])[0].numpy()
    return rows


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_look_up_equals_teacher(teacher: Embedder, tmp_path: Path) -> None:
    data, flips = Data(), []
    known = read(tmp_path, data, teacher)
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
def test_plain_views_have_aligned_pixels(augmentation: str) -> None:
    data, same = Data(augmentation), []
    plain = aligned(data)
    for batch in data.train_dataloader():
        for face, index, flipped in zip(batch["face"], batch["index"].tolist(), batch["flipped"], strict=True):
            same.append(torch.equal(face, plain[index].flip(-1) if flipped else plain[index]))
    assert len(same) == 12 and all(same) == bool(data.plain_views)
    for change in ({"blend_probability": 0.1}, {"misalignment": 0.1}, {"distractors": True}):
        assert not Data("flip", **change).plain_views


def test_same_losses_without_teacher_in_training(tmp_path: Path) -> None:
    (cached, counter), (computing, reference) = fit(tmp_path, Data()), fit(tmp_path, NoPlainViews())
    assert (counter.before, counter.faces) == (24, 24) and (reference.before, reference.faces) == (0, 12)
    assert len(counter.losses) == 3
    assert_close(counter.losses, reference.losses)
    assert_close(cached.identity_centers, computing.identity_centers)


def test_aligned_teacher_view(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    data = Data("strong", masks_per_face=2)
    _, counter = fit(tmp_path, data, teacher_view="aligned")
    expected = computed(teacher, data, flipped=False)
    assert len(counter.batches) == 3 and any(batch["flipped"].any() for batch in counter.batches)
    for batch in counter.batches:
        assert len(batch["teacher_embedding"]) == len(batch["face"]) == 8
        assert_close(batch["teacher_embedding"], expected[batch["index"]])
        with torch.no_grad():  # the augmented face has another embedding
            assert (teacher(batch["face"]) - batch["teacher_embedding"]).abs().max() > 0.01
    assert counter.before == counter.faces == 12 and len(list(cache.iterdir())) == 1


def test_aligned_teacher_view_refuses_blends(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"knows no blended faces: set data\.blend_probability to 0"):
        fit(tmp_path, Data("none", blend_probability=0.5), teacher_view="aligned")


@pytest.mark.parametrize(("augmentation", "views"), [("strong", 1), ("none", 1), ("flip", 2)])
def test_used_views_computed_once(augmentation: str, views: int, tmp_path: Path, cache: Path) -> None:
    (first, counter), (second, again) = (fit(tmp_path, Data(augmentation), steps=1) for _ in range(2))
    assert (counter.before, again.before) == (12 * views, 0)
    assert len(list(cache.iterdir())) == views
    assert torch.equal(first.identity_centers, second.identity_centers)


def test_resumed_training(tmp_path: Path, cache: Path) -> None:
    fit(tmp_path, Data(), steps=1)
    start = (tmp_path / "last.ckpt").rename(tmp_path / "start.ckpt")
    assert not any("cache" in key for key in torch.load(start, weights_only=True)["state_dict"])
    for faces in (0, 24):  # from the files, then without them
        counter = fit(tmp_path, Data(), steps=1, epochs=2, start=start)[1]
        assert counter.faces == faces and len(counter.losses) == 1
        for file in cache.iterdir():
            file.unlink()


def test_validation_runs_teacher(tmp_path: Path) -> None:
    module, counter = DistillationModule(student_input="masked"), Counter()
    length: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1}
    trainer = trainer_for(tmp_path, **length, callbacks=[counter], enable_checkpointing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics without pairs
        trainer.fit(module, datamodule=Data(kinds=("box",)))
    assert counter.faces == 24 + 2 * (5 + 5)  # sanity check and end of the epoch: clean and masked faces


def test_file_per_teacher_and_data(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    def number_of_files(data: Data, teacher: Embedder) -> int:
        read(tmp_path, data, teacher)
        return len(list(cache.iterdir()))

    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters())[0] += 1e-6
    shifted, repainted = Data("none"), Data("none")
    shifted.face_set.landmarks = shifted.face_set.landmarks + 1.0
    repainted.face_set.image = lambda index: np.full((72, 72, 3), index, np.uint8)  # type: ignore[method-assign]
    cases = [(Data("none"), teacher), (Data("none"), other), (Data("none", size=64), teacher)]
    cases += [(shifted, teacher), (repainted, teacher)]
    assert [number_of_files(*case) for case in cases] == [1, 2, 3, 4, 5]
    assert number_of_files(Data("none", batch_size=2, seed=5), create_teacher("dlib_resnet")) == 5


@pytest.mark.parametrize(
    "options", [{"color": "bgr"}, {"template": "arcface"}, {"size": 140}, {"mean": (1.0, 2.0, 3.0)}]
)
def test_fingerprint_depends_on_options(options: dict[str, Any], teacher: Embedder) -> None:
    assert teacher_fingerprint(create_teacher("dlib_resnet", **options)) != teacher_fingerprint(teacher)


def test_fingerprint_of_onnx_file(tmp_path: Path) -> None:
    found: list[str] = []
    for pool in (10, 20, 10):
        network = nn.Sequential(nn.AvgPool2d(pool), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        weights = export_onnx(tmp_path / f"{len(found)}.onnx", network)
        found.append(teacher_fingerprint(create_teacher("onnx", weights)))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other shape"])
def test_damaged_file_replaced(damage: str, teacher: Embedder, tmp_path: Path, cache: Path) -> None:
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


def test_interruption_leaves_no_file(teacher: Embedder, tmp_path: Path, cache: Path) -> None:
    calls: list[list[str]] = []

    def interrupt(_teacher: Any, inputs: tuple[Tensor, ...]) -> None:
        calls.append(sorted(path.suffix for path in cache.iterdir()))
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = teacher.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, Data("none"), teacher)
    hook.remove()
    assert calls == [[".tmp"]] * 2 and list(cache.iterdir()) == []


def test_full_disk_before(teacher: Embedder, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.warns(UserWarning, match=r"cannot keep .*0\.0 GB are needed.*set DEOCC_CACHE"):
        known = read(tmp_path, Data(), teacher)
    assert not known.knows_training and list(cache.iterdir()) == []
    assert_close(known.faces, computed(teacher, Data(), flipped=False))


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module, counter = fit(tmp_path, Data())
    assert (counter.before, counter.faces) == (12, 24) and module.identity_centers.shape == (4, 128)
    assert sum("cannot keep the teacher's embeddings" in str(warning.message) for warning in caught) == 1


def test_draft_on_full_disk(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft", (3, 2))
    assert draft.error is None and draft._file is not None
    draft._file.close()
    draft._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    for _ in range(2):
        draft.write(np.array([0, 2]), np.ones((2, 2), np.float32))
    draft.close()
    assert "No space left" in str(draft.error)
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_draft_has_one_writer(tmp_path: Path) -> None:
    first, second = (Draft(tmp_path / "draft", (4, 2)) for _ in range(2))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for draft, sign in ((first, 1), (second, -1)):
        draft.write(np.array([2, -1, 0]), sign * rows)
        draft.close()
    for draft in (second, first):
        draft.publish(tmp_path / "whole")
        draft.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    found = open_rows(tmp_path / "whole", (4, 2))
    assert found is not None and found.tolist() == [[4, 5], [0, 0], [0, 1], [0, 0]]
    np.testing.assert_array_equal(np.load(tmp_path / "whole"), found)


def test_abandoned_drafts_deleted(tmp_path: Path) -> None:
    old, new = tmp_path / "old.tmp", tmp_path / "new.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    Draft(tmp_path / "draft", (1, 1)).discard()
    assert list(tmp_path.iterdir()) == [new]


def train_process(folder: str, rank: int) -> dict[str, Any]:
    """Train with one cache folder for both processes, and with one per process as on nodes without a common disk."""
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes exist
    outcome = {}
    for name, place in (("common", "common"), ("own", str(rank))):
        os.environ["DEOCC_CACHE"] = f"{folder}/{place}"
        module, counter = DistillationModule(student_input="masked"), Counter()
        ddp: dict[str, Any] = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": PROCESSES}
        length: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 0, "use_distributed_sampler": False}
        trainer = trainer_for(Path(folder), **length, **ddp, enable_checkpointing=False, callbacks=[counter])
        trainer.fit(module, datamodule=Data())
        outcome[name] = {"before": counter.before, "faces": counter.faces, "centers": module.identity_centers}
    return outcome


@pytest.mark.slow
def test_two_processes_share_work(tmp_path: Path, teacher: Embedder) -> None:
    expected = [computed(teacher, Data(), flipped) for flipped in (False, True)]
    outcomes = run_processes(partial(train_process, str(tmp_path)), tmp_path)
    for name, places in (("common", ("common",) * 2), ("own", ("0", "1"))):
        for outcome, place in zip(outcomes, places, strict=True):
            assert outcome[name]["before"] == outcome[name]["faces"] == 12  # half of the faces, twice
            files = sorted((tmp_path / place / "teacher").iterdir(), key=lambda path: "mirrored" in path.name)
            for file, rows in zip(files, expected, strict=True):
                assert_close(np.load(file), rows)
        assert torch.equal(outcomes[0][name]["centers"], outcomes[1][name]["centers"])
