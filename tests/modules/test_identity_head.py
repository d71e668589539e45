"""The sharded identity head with two processes equals the full head in one: steps, clipping, checkpoints."""

import deocc._torchvision  # isort: skip  # noqa: F401  # before Lightning, also in spawned processes

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from deocc.losses import IdentityLoss, ShardedIdentityLoss
from deocc.modules import identity_head
from deocc.modules.identity_head import (
    HeadType,
    IdentityHead,
    blended_identity_loss,
    blended_targets,
    clip_gradients,
    exclude_from_ddp,
    gather_head,
    own_centers,
    split_head,
)
from tests.losses.spawning import PROCESSES, run_processes
from tests.modules.training import faces, trainer_for

BATCH, STEPS, IDENTITIES, DIM = 4, 4, 11, 6
CLIP = 0.05  # below the norm of every step
Checkpoint = dict[str, Any]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, CENTERS = draw(STEPS, PROCESSES * BATCH, 5, seed=0), draw(IDENTITIES, DIM, seed=1)
IDENTITY = torch.randint(IDENTITIES, (STEPS, PROCESSES * BATCH, 3), generator=torch.Generator().manual_seed(2))
WEIGHT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(PROCESSES * BATCH, 3)


class Recogniser(pl.LightningModule):
    """The smallest student with a classifier, with the hooks of stage 2."""

    classifier: IdentityHead

    def __init__(self, head: HeadType, sample_share: float) -> None:
        super().__init__()
        self.head, self.sample_share = head, sample_share
        self.student = nn.Linear(5, DIM, dtype=torch.float64)
        with torch.no_grad():
            self.student.weight.copy_(draw(DIM, 5, seed=3))
            self.student.bias.zero_()

    def setup(self, stage: str) -> None:
        settings: Any = {"margin_type": "cosface", "margin": 0.2, "scale": 16.0}
        if self.head == "sharded":
            settings["sample_share"] = self.sample_share
        head = ShardedIdentityLoss if self.head == "sharded" else IdentityLoss
        self.classifier = head(IDENTITIES, DIM, **settings).double()
        self.classifier.initialise(CENTERS)
        if self.head == "sharded":
            exclude_from_ddp(self, "classifier")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        step = self.global_step
        first = self.global_rank * BATCH
        own = slice(first, first + BATCH) if self.trainer.world_size > 1 else slice(None)
        seed = (step,) if self.head == "sharded" else ()
        loss: Tensor = self.classifier(self.student(IMAGES[step, own]), IDENTITY[step, own], WEIGHT[own], *seed)
        return loss

    def configure_optimizers(self) -> Optimizer:
        student = {"params": self.student.parameters(), "lr": 0.01}
        return AdamW([student, {"params": self.classifier.parameters(), "lr": 0.1, "weight_decay": 0.0}])

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if isinstance(self.classifier, ShardedIdentityLoss):
            clip_gradients(self.classifier, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        if isinstance(self.classifier, ShardedIdentityLoss):
            gather_head(checkpoint, "classifier", self.classifier)

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        if isinstance(self.classifier, ShardedIdentityLoss):
            split_head(checkpoint, "classifier", self.classifier)


def train(
    folder: Path, name: str, head: HeadType, sample_share: float, steps: int, start: str | None = None, **settings: Any
) -> Checkpoint:
    """Train up to a number of steps, from a checkpoint in `folder` if one is named, and save one."""
    length: dict[str, Any] = {"max_epochs": None, "max_steps": steps, "gradient_clip_val": CLIP}
    trainer = trainer_for(folder, enable_checkpointing=False, use_distributed_sampler=False, **length, **settings)
    data: Any = DataLoader(range(STEPS // 2), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Recogniser(head, sample_share), data, ckpt_path=folder / start if start else None)
    trainer.save_checkpoint(folder / name)
    return load(folder / name)


def load(path: Path) -> Checkpoint:
    checkpoint: Checkpoint = torch.load(path, weights_only=True)
    return checkpoint


def train_sharded(folder: str, rank: int) -> dict[str, Any]:
    identity_head._PIECE = 2  # several pieces, the last one shorter
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes exist
    for name, sample_share, steps, start in (
        ("whole.ckpt", 1.0, STEPS, None),
        ("half.ckpt", 1.0, STEPS // 2, None),
        ("resumed.ckpt", 1.0, STEPS, "half.ckpt"),
        ("of one.ckpt", 1.0, STEPS, "one half.ckpt"),
        ("sampled.ckpt", 0.3, STEPS, None),
    ):
        ddp: dict[str, Any] = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": PROCESSES}
        train(Path(folder), name, "sharded", sample_share, steps, start, **ddp)
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of two processes, and of one process with a full head."""
    folder = tmp_path_factory.mktemp("processes")
    train(folder, "one.ckpt", "full", 1.0, STEPS)
    train(folder, "one half.ckpt", "full", 1.0, STEPS // 2)
    run_processes(partial(train_sharded, str(folder)), folder)
    return folder


def assert_same(found: Checkpoint, expected: Checkpoint, tolerance: float = 1e-9) -> None:
    """Compare weights and the state of the optimiser."""
    states = [
        (checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]) for checkpoint in (found, expected)
    ]
    torch.testing.assert_close(*states, rtol=tolerance, atol=1e-12 if tolerance else 0)


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path) -> None:
    one = load(folder / "one.ckpt")
    assert one["state_dict"]["classifier.weight"].shape == (IDENTITIES, DIM)
    assert (one["state_dict"]["classifier.weight"] - CENTERS).abs().min() > 1e-3  # every row has moved
    assert_same(load(folder / "whole.ckpt"), one)


@pytest.mark.slow
def test_two_processes_resume_exactly(folder: Path) -> None:
    assert_same(load(folder / "resumed.ckpt"), load(folder / "whole.ckpt"), tolerance=0)


@pytest.mark.slow
def test_resume_with_other_head_and_processes(folder: Path) -> None:
    one = load(folder / "one.ckpt")
    assert_same(load(folder / "of one.ckpt"), one)
    assert_same(train(folder, "full of two.ckpt", "full", 1.0, STEPS, "half.ckpt"), one)
    assert_same(train(folder, "sharded of two.ckpt", "sharded", 1.0, STEPS, "half.ckpt"), one)


@pytest.mark.slow
def test_sampling_on_two_processes(folder: Path) -> None:
    assert_same(load(folder / "sampled.ckpt"), train(folder, "sampled by one.ckpt", "sharded", 0.3, STEPS))
    first = train(folder, "sampled once.ckpt", "sharded", 0.3, 1)["state_dict"]["classifier.weight"]
    untouched = (first == CENTERS).all(1)
    assert untouched.any() and not untouched[IDENTITY[0].unique()].any()


@pytest.mark.parametrize(
    ("limit", "algorithm"), [(0.5, None), (0.5, "norm"), (0.5, "value"), (None, None), (0.0, None)]
)
def test_clipping_in_one_process(limit: float | None, algorithm: str | None) -> None:
    head, other = ShardedIdentityLoss(5, 4, sample_share=0.5), nn.Parameter(torch.zeros(3))
    optimizer = AdamW([{"params": [other]}, {"params": list(head.parameters())}])
    head.weight.grad, other.grad = draw(5, 4, seed=8).float(), draw(3, seed=9).float()
    expected = [nn.Parameter(torch.zeros_like(p)) for p in (other, head.weight)]
    for parameter, gradient in zip(expected, (other.grad, head.weight.grad), strict=True):
        parameter.grad = gradient.clone()
    clip_gradients(head, optimizer, limit, algorithm)
    if algorithm == "value":
        nn.utils.clip_grad_value_(expected, 0.5)
    elif limit:
        nn.utils.clip_grad_norm_(expected, limit)
    torch.testing.assert_close((other.grad, head.weight.grad), tuple(parameter.grad for parameter in expected))


def test_blended_faces() -> None:
    batch = faces(4)
    batch["mixup_identity"] = torch.tensor([[1, 2], [1, 0], [3, 3], [3, 4]])
    batch["mixup_weight"] = torch.tensor([[0.3, 0.2], [0.0, 0.0], [0.4, 0.2], [0.1, 0.5]])
    full, sharded = (head(5, 8, "arcface", 0.3, 16.0) for head in (IdentityLoss, ShardedIdentityLoss))
    full.initialise(draw(5, 8, seed=10).float())
    sharded.initialise(full.weight.detach())
    embedding = draw(4, 8, seed=11).float()
    loss = blended_identity_loss(full, embedding, batch)
    torch.testing.assert_close(blended_identity_loss(sharded, embedding, batch, step=3), loss)
    identity, weight = blended_targets(batch)
    assert weight.sum(1).tolist() == pytest.approx([1.0] * 4)
    alone = [full(embedding[[image]], label[None]) for image in range(4) for label in identity[image]]
    torch.testing.assert_close(loss, (torch.stack(alone).view(4, 3) * weight).sum(1).mean())
    centers = torch.eye(5)
    expected = nn.functional.normalize(0.5 * centers[0] + 0.3 * centers[1] + 0.2 * centers[2], dim=0)
    torch.testing.assert_close(own_centers(centers, batch)[0], expected)


def test_ddp_exclusion_by_whole_names() -> None:
    module: Any = nn.Sequential()
    module.classifier, module.classifiers = nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)
    for name in ("centers", "center"):
        module.register_buffer(name, torch.zeros(2))
    exclude_from_ddp(module, "classifier", "center")
    assert set(module._ddp_params_and_buffers_to_ignore) == {"classifier.weight", "classifier.bias", "center"}


def test_one_process_keeps_checkpoint() -> None:
    head = ShardedIdentityLoss(5, 4)
    state = {"classifier.weight": head.weight.detach(), "other": torch.ones(2)}
    checkpoint: Checkpoint = {"state_dict": state, "optimizer_states": []}
    before = copy.copy(checkpoint)
    gather_head(checkpoint, "classifier", head)
    assert checkpoint == before
    split_head(checkpoint, "classifier", head)
    assert torch.equal(checkpoint["state_dict"]["classifier.weight"], head.weight)
