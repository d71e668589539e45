"""Effect of bfloat16 on embeddings and error rates, on real faces.

Raw embeddings of the default teacher have cosines of 0.86 between different identities, so removing part of what they
share multiplies any error. Crops with coordinates rounded to bfloat16 would cost a cosine of up to 0.03; networks in
bfloat16 on float32 crops keep 0.9999, and evaluation and inference are in float32 anyway. A training in bfloat16 has
gradients that differ by a tenth and a student that differs by 0.001 to 0.002 after five steps: a small part of what
another seed changes.
"""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from deocc.data import MaskedFaceDataModule, OrlFaces
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import PairScores
from deocc.modules import DistillationModule
from deocc.networks import create_teacher
from deocc.networks.embedders.embedder import unit_embedding
from tests.conftest import ROOT, SMALL, run_deocc
from tests.evaluation.conftest import paired_bootstrap

ALIKE: Final = 0.999
"""The smallest cosine of two embeddings that count as the same."""
Rows = dict[str, EmbeddingSet]


def faces(**settings: Any) -> MaskedFaceDataModule:
    """Eight validation identities; two kinds of mask on each of their images."""
    sizes: dict[str, Any] = {"size": 64, "eval_batch_size": 20, "kinds": ("surgical", "sunglasses")}
    return MaskedFaceDataModule(OrlFaces("development"), **sizes, **settings)


def read(run: Path) -> DistillationModule:
    return DistillationModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu").eval()


@torch.no_grad()
def embedded(run: Path, low: bool, data: MaskedFaceDataModule) -> Rows:
    """Return the embeddings of validation people; loading and masking are outside autocast, as in a trainer."""
    module = read(run)
    for loader, batches in enumerate(data.val_dataloader()):
        for number, batch in enumerate(data.on_after_batch_transfer(batch, loader) for batch in batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                module.test_step(batch, number, loader)
    return module.comparison.collect()[0]


def cosine(one: Rows, other: Rows, row: str = "student") -> Tensor:
    return torch.cosine_similarity(one[row].embedding, other[row].embedding)


@pytest.mark.slow
def test_validation_embeddings_equal(stage2: Path) -> None:
    data = faces(val_people=2)
    low, full = embedded(stage2, True, data), embedded(stage2, False, data)
    assert {"teacher_clean", "student_clean", "teacher_masked", "teacher_completed", "student"} <= full.keys()
    assert all(float(cosine(low, full, row).min()) > ALIKE for row in full)


@torch.no_grad()
def test_networks_keep_embeddings(stage2: Path) -> None:
    """Raw and unit embeddings of clean and masked faces, by the teacher and the averaged student."""
    module, data = read(stage2), faces(val_people=1)
    clean, probes = data.val_dataloader()
    images = [batch["face"] for batch in clean]
    images += [data.on_after_batch_transfer(batch, 1)["masked_face"] for batch in probes]
    networks: list[Any] = [module.teacher, module.average.module.embedder]
    for network in networks:
        full = torch.cat([network(face) for face in images])
        with torch.autocast("cpu", torch.bfloat16):
            low = torch.cat([network(face) for face in images])
        assert not torch.allclose(low, full, atol=1e-5)  # bfloat16 was used
        for one, other in ((low, full), (unit_embedding(low, module.center), unit_embedding(full, module.center))):
            assert float(torch.cosine_similarity(one, other).min()) > ALIKE


def test_crops_unchanged_by_autocast() -> None:
    face, teacher = next(iter(faces().val_dataloader()[0]))["face"], create_teacher("dlib_resnet")
    expected = teacher.crop(face)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.crop(face)[0], expected)


@pytest.fixture(scope="module")
def trained(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows, Rows]:
    """Short trainings with the configured losses: float32, bfloat16, and float32 with another seed."""
    argv = ["fit", "--config", str(ROOT / "configs/distill.yaml"), *SMALL, "--data.batch_size", "16"]
    argv += ["--data.face_set.init_args.split", "development", "--trainer.max_epochs", "1"]
    argv += ["--model.init_args.inpainting_checkpoint", str(stage1), "--trainer.limit_train_batches", "5"]
    argv += ["--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"]
    runs, folder = [], tmp_path_factory.mktemp("precision")
    for precision, seed in (("32-true", "0"), ("bf16-mixed", "0"), ("32-true", "1")):
        run = folder / f"{precision} {seed}"
        run_deocc(*argv, "--run", str(run), "--trainer.precision", precision, "--data.seed", seed)
        runs.append(embedded(run, False, faces()))
    return runs[0], runs[1], runs[2]


def scores(rows: Rows) -> PairScores:
    return AllPairs().cross(rows["student_clean"], rows["student"])


@pytest.mark.slow
def test_training_error_rates_within_intervals(trained: tuple[Rows, Rows, Rows]) -> None:
    """Each error rate is in the other's interval, and the narrower paired interval of the difference contains 0."""
    full, low = (scores(rows) for rows in trained[:2])
    # Compared with a system without errors, the interval of the difference is that of the rate itself.
    rate_full, rate_low = (
        paired_bootstrap("eer", [pairs], [pairs._replace(similarity=pairs.same.float())]) for pairs in (full, low)
    )
    assert rate_full.low <= rate_low.estimate <= rate_full.high
    assert rate_low.low <= rate_full.estimate <= rate_low.high
    difference = paired_bootstrap("eer", [low], [full])
    assert difference.low <= 0 <= difference.high


@pytest.mark.slow
def test_training_differs_less_than_by_seed(trained: tuple[Rows, Rows, Rows]) -> None:
    """Not `ALIKE`: a rounded gradient near 0 can change its sign, and Adam makes a whole step of it."""
    full, low, other = trained
    for row in ("student_clean", "student"):
        assert 1 - cosine(low, full, row).mean() < 0.01 * (1 - cosine(other, full, row).mean())
