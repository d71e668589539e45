"""What bfloat16 may change of embeddings and of error rates, on real faces.

The default teacher's embeddings of different people are alike to 0.86, and cosines are taken after centring, which lets any error count
several times as much: a crop whose coordinates are rounded to bfloat16 costs up to 0.03. With crops in float32 a network in bfloat16 keeps
0.9999, and what is evaluated or handed out is computed in float32 anyway. A training in bfloat16 is another matter: its gradients differ by
a tenth, and its student by 0.001 to 0.002 after five steps, more after more of them: a small part of what another seed changes.
"""

from pathlib import Path
from typing import Any, Final, cast

import pytest
import torch
from torch import Tensor

from deocc.data import MaskedFaceDataModule, OrlFaces
from deocc.evaluation import AllPairs, EmbeddingSet, PairScores, paired_bootstrap_eer
from deocc.modules import DistillationModule
from deocc.modules.evaluation import centred
from deocc.networks import Student, create_teacher
from tests.conftest import ROOT, SMALL, run_deocc

ALIKE: Final = 0.999
"""The smallest cosine of two embeddings that count as the same."""
Rows = dict[str, EmbeddingSet]


def faces(**settings: Any) -> MaskedFaceDataModule:
    """Eight people to validate on; two kinds of mask on each of their images."""
    return MaskedFaceDataModule(
        OrlFaces("development"), size=64, eval_batch_size=20, kinds=("surgical", "sunglasses"), **settings
    )


@torch.no_grad()
def embedded(run: Path, low: bool, data: MaskedFaceDataModule) -> Rows:
    """What a validation collects, as in a trainer of either precision, which loads and masks the faces outside autocast."""
    module = read(run)
    for loader, batches in enumerate(data.val_dataloader()):
        for number, batch in enumerate(data.on_after_batch_transfer(batch, loader) for batch in batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                module.validation_step(batch, number, loader)
    rows: Rows = module.comparison.collect()[0]
    return rows


def read(run: Path) -> DistillationModule:
    return DistillationModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu").eval()


def cosine(one: Rows, other: Rows, row: str = "student") -> Tensor:
    return torch.cosine_similarity(one[row].embedding, other[row].embedding)


@pytest.mark.slow
def test_embeddings_of_real_faces_are_the_same_in_a_trainer_of_either_precision(stage2: Path) -> None:
    data = faces(val_people=2)
    low, full = embedded(stage2, True, data), embedded(stage2, False, data)
    assert {"gallery_teacher", "gallery_student", "teacher_masked", "teacher_completed", "student"} <= full.keys()
    assert all(float(cosine(low, full, row).min()) > ALIKE for row in full)


@torch.no_grad()
def test_the_networks_themselves_keep_the_embeddings_under_autocast(stage2: Path) -> None:
    """Raw and centred ones, of clean faces and of masked ones, by the teacher and by the student's running average."""
    module, data = read(stage2), faces(val_people=1)
    clean, probes = data.val_dataloader()
    shown = [batch["face"] for batch in clean] + [
        data.on_after_batch_transfer(batch, 1)["masked_face"] for batch in probes
    ]
    for network in (module.teacher, cast(Student, module.average.network).embedder):
        full = torch.cat([network(face) for face in shown])
        with torch.autocast("cpu", torch.bfloat16):
            low = torch.cat([network(face) for face in shown])
        assert not torch.allclose(low, full, atol=1e-5)  # bfloat16 was at work
        for one, other in ((low, full), (centred(low, module.center), centred(full, module.center))):
            assert float(torch.cosine_similarity(one, other).min()) > ALIKE


def test_autocast_does_not_move_a_crop() -> None:
    """Coordinates go through no matrix product that it would round."""
    face = next(iter(faces().val_dataloader()[0]))["face"]
    teacher = create_teacher("dlib_resnet")
    expected = teacher.crop(face)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.crop(face)[0], expected)


def train(folder: Path, stage1: Path, precision: str, seed: int) -> Rows:
    """A short training with the configuration's own losses, rate and average; what its student gives, in float32."""
    words = [
        *SMALL,
        "--data.batch_size",
        "16",
        "--data.face_set.init_args.split",
        "development",
        "--data.seed",
        str(seed),
    ]
    words += [
        "--model.init_args.inpainting_checkpoint",
        str(stage1),
        "--trainer.precision",
        precision,
        "--trainer.max_epochs",
        "1",
    ]
    words += [
        "--trainer.limit_train_batches",
        "5",
        "--trainer.limit_val_batches",
        "0",
        "--trainer.log_every_n_steps",
        "1",
    ]
    run_deocc("fit", "--config", str(ROOT / "configs/distill.yaml"), "--run", str(folder), *words)
    return embedded(folder, False, faces())


@pytest.fixture(scope="module")
def trained(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows, Rows]:
    """In float32, in bfloat16, and in float32 by another seed."""
    folder = tmp_path_factory.mktemp("precision")
    settings = (("32-true", 0), ("bf16-mixed", 0), ("32-true", 1))
    full, low, other = (train(folder / f"{precision} {seed}", stage1, precision, seed) for precision, seed in settings)
    return full, low, other


def scores(rows: Rows) -> PairScores:
    return AllPairs().cross(rows["gallery_student"], rows["student"])


@pytest.mark.slow
def test_the_error_rate_of_a_training_in_bfloat16_lies_within_the_interval_of_that_in_float32(
    trained: tuple[Rows, Rows, Rows],
) -> None:
    """And the other way round; and the paired interval of the difference, which is narrower, holds 0."""
    full, low = (scores(rows) for rows in trained[:2])
    # Against a system without errors, the interval of a difference is that of the rate itself.
    own_full, own_low = (
        paired_bootstrap_eer(pairs, pairs._replace(similarity=pairs.same.float())) for pairs in (full, low)
    )
    assert own_full.low <= own_low.estimate <= own_full.high
    assert own_low.low <= own_full.estimate <= own_low.high
    difference = paired_bootstrap_eer(low, full)
    assert difference.low <= 0 <= difference.high


@pytest.mark.slow
def test_a_training_in_bfloat16_goes_a_small_part_of_the_way_that_another_seed_goes(
    trained: tuple[Rows, Rows, Rows],
) -> None:
    """No cosine of `ALIKE`: a rounded gradient near 0 changes its sign, and Adam makes a whole rate of it."""
    full, low, other = trained
    for row in ("gallery_student", "student"):
        assert 1 - cosine(low, full, row).mean() < 0.01 * (1 - cosine(other, full, row).mean())
