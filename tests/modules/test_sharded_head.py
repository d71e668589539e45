"""A sharded identity head in a Lightning trainer with two processes, against a whole one in one process: steps, clipping, checkpoints."""

# First, also in the processes that are started: Lightning must not meet a torchvision that does not fit before deocc's guard stands.
import deocc  # isort: skip  # noqa: F401

import copy
import gc
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.utils.data import DataLoader

from deocc.losses import IdentityLoss
from deocc.losses.sharded_identity import ShardedIdentityLoss
from deocc.modules import identity_head
from deocc.modules.identity_head import (
    HeadType,
    blended_identity_loss,
    build_identity_head,
    clip_gradients,
    gather_head,
    leave_to_processes,
    people,
    shares,
    split_head,
)
from deocc.modules.row_adamw import RowAdamW
from tests.modules.test_inpainting import faces

PROCESSES, BATCH, STEPS, PEOPLE, DIM, LIMIT = 2, 4, 4, 11, 6, 120
CLIP = 0.05  # below every step's norm
Checkpoint = dict[str, Any]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, CENTERS = draw(STEPS, PROCESSES * BATCH, 5, seed=0), draw(PEOPLE, DIM, seed=1)
IDENTITY = torch.randint(PEOPLE, (STEPS, PROCESSES * BATCH, 3), generator=torch.Generator().manual_seed(2))
SHARE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(PROCESSES * BATCH, 3)


class Recogniser(pl.LightningModule):
    """The smallest student with a classifier, through the same hooks as stage 2."""

    def __init__(self, head: HeadType, sample_share: float) -> None:
        super().__init__()
        self.student = nn.Linear(5, DIM, dtype=torch.float64)
        with torch.no_grad():
            self.student.weight.copy_(draw(DIM, 5, seed=3))
            self.student.bias.zero_()
        self.head, self.sample_share = head, sample_share
        self.classifier: IdentityLoss | ShardedIdentityLoss | None = None

    def setup(self, stage: str) -> None:
        if self.classifier is None:
            self.classifier = build_identity_head(
                self.head, self.sample_share, PEOPLE, DIM, "cosface", 0.2, 16.0
            ).double()
            self.classifier.initialise(CENTERS)
            if self.head == "sharded":
                leave_to_processes(self, "classifier")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        number = self.global_step
        own = (
            slice(self.global_rank * BATCH, (self.global_rank + 1) * BATCH)
            if self.trainer.world_size > 1
            else slice(None)
        )
        targets: tuple[Any, ...] = (IDENTITY[number, own], SHARE[own])
        if isinstance(self.classifier, ShardedIdentityLoss):
            targets = (*targets, self.global_step)
        assert self.classifier is not None
        loss: Tensor = self.classifier(self.student(IMAGES[number, own]), *targets)
        return loss

    def configure_optimizers(self) -> Optimizer:
        assert self.classifier is not None
        kind = AdamW if self.head == "full" else RowAdamW
        return kind(
            [{"params": self.student.parameters(), "lr": 0.01}, {"params": self.classifier.parameters(), "lr": 0.1}]
        )

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
    folder: Path, name: str, head: HeadType, sample_share: float, steps: int, start: str | None = None, devices: int = 1
) -> Checkpoint:
    """Fit so many steps, from a checkpoint in `folder` where one is named, and save one."""
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT / 2))
        if devices > 1
        else "auto",
        gradient_clip_val=CLIP,
        use_distributed_sampler=False,  # every process sees all batches, and takes its own images of each
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Recogniser(head, sample_share)
    trainer.fit(module, DataLoader(range(STEPS // 2), batch_size=None), ckpt_path=folder / start if start else None)  # type: ignore[arg-type]
    trainer.save_checkpoint(folder / name)
    return load(folder / name)


def load(path: Path) -> Checkpoint:
    checkpoint: Checkpoint = torch.load(path, weights_only=True)
    return checkpoint


def one_process(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    identity_head._PIECE = 2  # several pieces, the last one shorter
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "GROUP_RANK": "0",
    }
    ours: dict[str, Any] = {"folder": Path(folder), "head": "sharded", "devices": PROCESSES}
    train(**ours, name="whole.ckpt", sample_share=1.0, steps=STEPS)
    train(**ours, name="half.ckpt", sample_share=1.0, steps=STEPS // 2)
    train(**ours, name="resumed.ckpt", sample_share=1.0, steps=STEPS, start="half.ckpt")
    train(**ours, name="of one.ckpt", sample_share=1.0, steps=STEPS, start="one half.ckpt")
    train(**ours, name="sampled.ckpt", sample_share=0.3, steps=STEPS)
    dist.barrier()
    gc.collect()  # DDP's modules lie in cycles that hold the process group
    dist.destroy_process_group()
    os._exit(
        0
    )  # gloo's threads, where any are left, may abort while an interpreter is taken down: nothing that is tested here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of two processes, and of one process with a whole classifier."""
    folder, deadline = tmp_path_factory.mktemp("processes"), time.monotonic() + LIMIT
    train(folder, "one.ckpt", "full", 1.0, STEPS)
    train(folder, "one half.ckpt", "full", 1.0, STEPS // 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = spawn(one_process, (str(folder), port), nprocs=PROCESSES, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            process.kill()
    return folder


def numbers(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weights and the optimiser's moments by name."""
    moments = {
        f"{number} {name}": value
        for number, state in checkpoint["optimizer_states"][0]["state"].items()
        for name, value in state.items()
    }
    return {**checkpoint["state_dict"], **moments}


def assert_same(found: Checkpoint, expected: Checkpoint, tolerance: float = 1e-9) -> None:
    ours, theirs = numbers(found), numbers(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=1e-12)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_moments_of_one(folder: Path) -> None:
    one = load(folder / "one.ckpt")
    assert one["state_dict"]["classifier.weight"].shape == (PEOPLE, DIM)
    assert (one["state_dict"]["classifier.weight"] - CENTERS).abs().min() > 1e-3  # every row has moved
    assert_same(load(folder / "whole.ckpt"), one)


@pytest.mark.slow
def test_two_processes_resume_exactly(folder: Path) -> None:
    assert_same(load(folder / "resumed.ckpt"), load(folder / "whole.ckpt"), tolerance=0)


@pytest.mark.slow
def test_two_processes_resume_what_one_with_a_whole_classifier_began_and_the_other_way_round(folder: Path) -> None:
    assert_same(load(folder / "of one.ckpt"), load(folder / "one.ckpt"))
    for head in ("full", "sharded"):
        assert_same(train(folder, f"of two, {head}.ckpt", head, 1.0, STEPS, "half.ckpt"), load(folder / "one.ckpt"))


@pytest.mark.slow
def test_sampling_too_gives_the_same_on_one_process_and_leaves_the_other_rows_alone(folder: Path) -> None:
    two = load(folder / "sampled.ckpt")
    assert_same(two, train(folder, "sampled by one.ckpt", "sharded", 0.3, STEPS))
    first = train(folder, "sampled once.ckpt", "sharded", 0.3, 1)["state_dict"]["classifier.weight"]
    untouched = (first == CENTERS).all(1)
    assert untouched.any() and not untouched[IDENTITY[0].unique()].any()


def trained(kind: Any, sparse: bool, weight_decay: float, rows: list[list[int]]) -> Tensor:
    """A weight after steps with gradients in some rows each."""
    weight = nn.Parameter(draw(5, 3, seed=7))
    settings = {"weight_decay": weight_decay} if kind is not SparseAdam else {}
    optimizer = kind([weight], lr=0.1, **settings)
    for number, chosen in enumerate(rows):
        index = torch.tensor([chosen])
        weight.grad = torch.sparse_coo_tensor(index, draw(len(chosen), 3, seed=number), (5, 3), check_invariants=True)
        weight.grad = weight.grad if sparse else weight.grad.to_dense()
        optimizer.step()
    return weight.detach()


def test_rows_move_as_under_sparse_adam_and_all_of_them_as_under_adamw() -> None:
    some = [[0, 2], [2, 4], [4, 0, 1], [2]]
    torch.testing.assert_close(trained(RowAdamW, True, 0.0, some), trained(SparseAdam, True, 0.0, some))
    every = [[0, 1, 2, 3, 4]] * 4
    torch.testing.assert_close(trained(RowAdamW, True, 0.1, every), trained(AdamW, False, 0.1, every))
    torch.testing.assert_close(trained(RowAdamW, False, 0.1, some), trained(AdamW, False, 0.1, some), rtol=0, atol=0)


def test_decay_too_leaves_rows_without_a_gradient_alone() -> None:
    weight = trained(RowAdamW, True, 0.5, [[0, 2], [2]])
    assert torch.equal(weight[[1, 3, 4]], draw(5, 3, seed=7)[[1, 3, 4]])


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_in_one_process_clipping_is_that_of_torch(algorithm: str | None) -> None:
    head, other = ShardedIdentityLoss(5, 4, sample_share=0.5), nn.Parameter(torch.zeros(3))
    optimizer = RowAdamW([{"params": [other]}, {"params": list(head.parameters())}])
    rows = torch.tensor([[1, 3, 1]])  # twice the same row, as after accumulation
    head.weight.grad = torch.sparse_coo_tensor(rows, draw(3, 4, seed=8).float(), (5, 4), check_invariants=True)
    other.grad = draw(3, seed=9).float()
    dense = [nn.Parameter(torch.zeros_like(p)) for p in (other, head.weight)]
    for parameter, gradient in zip(dense, (other.grad, head.weight.grad.to_dense()), strict=True):
        parameter.grad = gradient.clone()
    clip_gradients(head, optimizer, 0.5, algorithm)
    if algorithm == "value":
        nn.utils.clip_grad_value_(dense, 0.5)
    else:
        nn.utils.clip_grad_norm_(dense, 0.5)
    for found, expected in zip((other, head.weight), dense, strict=True):
        assert found.grad is not None and expected.grad is not None
        torch.testing.assert_close(found.grad.to_dense(), expected.grad)


def test_without_a_limit_nothing_is_clipped() -> None:
    head = ShardedIdentityLoss(5, 4)
    head.weight.grad = torch.ones_like(head.weight)
    for limit in (None, 0.0):
        clip_gradients(head, RowAdamW(head.parameters()), limit)
    assert torch.equal(head.weight.grad, torch.ones_like(head.weight))


def test_blended_faces_have_one_loss_under_either_head() -> None:
    batch = faces(4)
    batch["other_identity"] = torch.tensor([[1, 2], [1, 0], [3, 3], [3, 4]])
    batch["other_share"] = torch.tensor([[0.3, 0.2], [0.0, 0.0], [0.4, 0.2], [0.1, 0.5]])
    full, sharded = (build_identity_head(head, 1.0, 5, 8, "arcface", 0.3, 16.0) for head in ("full", "sharded"))
    full.initialise(draw(5, 8, seed=10).float())
    sharded.initialise(full.weight.detach())
    embedding = draw(4, 8, seed=11).float()
    torch.testing.assert_close(
        blended_identity_loss(sharded, embedding, batch, turn=3), blended_identity_loss(full, embedding, batch)
    )
    alone = [full(embedding[[image]], person[None]) for image in range(4) for person in people(batch)[image]]
    expected = (torch.stack(alone).view(4, 3) * shares(batch)).sum(1).mean()
    torch.testing.assert_close(blended_identity_loss(full, embedding, batch), expected)


def test_what_is_left_to_the_processes_is_what_was_named_and_what_lies_in_it() -> None:
    module: Any = nn.Sequential()
    module.classifier, module.classifiers = nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)
    for name in ("centers", "center"):
        module.register_buffer(name, torch.zeros(2))
    leave_to_processes(module, "classifier", "center")
    assert set(module._ddp_params_and_buffers_to_ignore) == {"classifier.weight", "classifier.bias", "center"}


def test_one_process_leaves_its_checkpoint_as_it_is() -> None:
    head = ShardedIdentityLoss(5, 4)
    checkpoint: Checkpoint = {
        "state_dict": {"classifier.weight": head.weight.detach(), "other": torch.ones(2)},
        "optimizer_states": [],
    }
    before = copy.copy(checkpoint)
    gather_head(checkpoint, "classifier", head)
    assert checkpoint == before
    split_head(checkpoint, "classifier", head)
    assert torch.equal(checkpoint["state_dict"]["classifier.weight"], head.weight)


@pytest.mark.parametrize(
    ("head", "sample_share", "message"),
    [
        ("split", 1.0, "unknown identity_head 'split': choose one of full, sharded"),
        ("full", 0.5, "identity_sample_share 0.5 needs identity_head sharded"),
        ("sharded", 0.0, r"identity_sample_share must lie in \(0, 1\], got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(head: Any, sample_share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_identity_head(head, sample_share, 5, 4, "softmax", 0.0, 16.0)
