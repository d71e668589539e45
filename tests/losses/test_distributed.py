"""Relational losses on two processes with half a batch each, compared with one process that has the whole batch."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deocc.losses import (
    gather_embeddings,
    gathered_pair_relation_loss,
    gathered_triplet_relation_loss,
    pair_relation_loss,
    triplet_relation_loss,
)
from deocc.losses.distributed import rows_of
from tests.losses.spawning import PROCESSES, Outcome, run_processes

BATCH, MAX_ANCHORS, STEPS = 4, 3, 2
GATHERED: dict[str, Callable[..., Tensor]] = {
    "pair": gathered_pair_relation_loss,
    "triplet": gathered_triplet_relation_loss,
}
PLAIN: dict[str, Callable[..., Tensor]] = {"pair": pair_relation_loss, "triplet": triplet_relation_loss}
RELATIONS = pytest.mark.parametrize("name", ["pair", "triplet"])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, TEACHER, SLOPES = draw(8, 6, seed=0), draw(8, 3, seed=1), draw(8, 6, seed=2)


def network() -> nn.Module:
    linear = nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(draw(4, 6, seed=3) / 2)
        linear.bias.copy_(draw(4, seed=4) / 2)
    return nn.Sequential(linear, nn.Tanh())  # relations ignore a shift: without tanh the bias would have no gradient


def measure(loss: Callable[..., Tensor], student: nn.Module, images: Tensor, teacher: Tensor) -> Outcome:
    value = loss(student(images), teacher)
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    return {"value": value.detach(), "gradient": torch.cat(gradients)}


def compute(rank: int) -> Outcome:
    """Losses and gradients of one process."""
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    images, teacher = IMAGES[own], TEACHER[own]
    outcome: Outcome = {}
    for name, loss in GATHERED.items():
        outcome[name] = measure(loss, network(), images, teacher)
        outcome[f"ddp {name}"] = measure(loss, DistributedDataParallel(network()), images, teacher)
        outcome[f"ungathered {name}"] = measure(PLAIN[name], network(), images, teacher)
        with pytest.raises(ValueError, match="batch size") as refused:
            loss(images[rank:], teacher[rank:])
        outcome[f"uneven {name}"] = str(refused.value)
    for step in range(STEPS):
        loss = partial(gathered_triplet_relation_loss, max_anchors=MAX_ANCHORS, step=step)
        outcome[f"step {step}"] = measure(loss, network(), images, teacher)
    leaf = images.T.contiguous().T.requires_grad_()  # not contiguous
    joined = gather_embeddings(leaf)
    ((rank + 1) * joined * SLOPES).sum().backward()
    outcome["gather"] = {"value": joined.detach(), "gradient": leaf.grad}
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Outcomes of both processes."""
    return run_processes(compute, tmp_path_factory.mktemp("processes"))


def mean(outcomes: list[Outcome], name: str, key: str) -> Tensor:
    return torch.stack([outcome[name][key] for outcome in outcomes]).mean(0)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@RELATIONS
def test_gathered_loss_equals_whole_batch(name: str, outcomes: list[Outcome]) -> None:
    expected = measure(PLAIN[name], network(), IMAGES, TEACHER)
    assert expected["gradient"].abs().min() > 1e-6
    for key in ("value", "gradient"):
        assert_close(mean(outcomes, name, key), expected[key])
        difference = mean(outcomes, f"ungathered {name}", key) - expected[key]
        assert difference.norm() > 0.05 * expected[key].norm()


@RELATIONS
def test_gathered_loss_under_ddp(name: str, outcomes: list[Outcome]) -> None:
    expected = measure(PLAIN[name], network(), IMAGES, TEACHER)
    assert_close(mean(outcomes, f"ddp {name}", "value"), expected["value"])
    for outcome in outcomes:
        assert_close(outcome[f"ddp {name}"]["gradient"], expected["gradient"])


def test_gathered_loss_per_process(outcomes: list[Outcome]) -> None:
    student = network()(IMAGES).detach()
    for rank, outcome in enumerate(outcomes):
        assert_close(outcome["pair"]["value"], pair_relation_loss(student, TEACHER))
        own = slice(rank * BATCH, (rank + 1) * BATCH)
        assert_close(outcome["triplet"]["value"], PROCESSES * triplet_relation_loss(student, TEACHER, anchors=own))
        for step in range(STEPS):
            chosen = slice(rank * BATCH + step, (rank + 1) * BATCH, STEPS)
            part = triplet_relation_loss(student, TEACHER, anchors=chosen)
            assert_close(outcome[f"step {step}"]["value"], PROCESSES * STEPS * part)
    assert abs(outcomes[0]["triplet"]["value"] - outcomes[1]["triplet"]["value"]) > 1e-3


def test_gathered_estimates_average_to_loss(outcomes: list[Outcome]) -> None:
    expected = measure(triplet_relation_loss, network(), IMAGES, TEACHER)
    for key in ("value", "gradient"):
        estimates = torch.stack([mean(outcomes, f"step {step}", key) for step in range(STEPS)])
        assert_close(estimates.mean(0), expected[key])
        assert (estimates[0] - expected[key]).norm() > 1e-3 * expected[key].norm()


def test_gather_order_and_gradient(outcomes: list[Outcome]) -> None:
    for rank, outcome in enumerate(outcomes):
        assert torch.equal(outcome["gather"]["value"], IMAGES)
        assert_close(outcome["gather"]["gradient"], (1 + 2) * SLOPES[rank * BATCH : (rank + 1) * BATCH])


@RELATIONS
def test_gather_unequal_batches(name: str, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert f"got {BATCH}, {BATCH - 1}: pad or drop" in outcome[f"uneven {name}"]


def test_anchor_slices_sum_to_loss() -> None:
    whole = measure(triplet_relation_loss, network(), IMAGES, TEACHER)
    parts = [
        measure(partial(triplet_relation_loss, anchors=chosen), network(), IMAGES, TEACHER)
        for chosen in (slice(0, 1), slice(1, 8, 2), slice(2, None, 2))
    ]
    for key in ("value", "gradient"):
        assert_close(torch.stack([part[key] for part in parts]).sum(0), whole[key])


def test_gathered_arguments() -> None:
    student = network()(IMAGES)
    first, second = (gathered_triplet_relation_loss(student, TEACHER, max_anchors=3, step=step) for step in (0, 1))
    assert torch.equal(gathered_triplet_relation_loss(student, TEACHER, max_anchors=3), first)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="max_anchors"):
        gathered_triplet_relation_loss(student, TEACHER, max_anchors=0)


def test_single_process_gathers_nothing() -> None:
    student = network()(IMAGES)
    assert gather_embeddings(student) is student
    for name, loss in GATHERED.items():
        assert torch.equal(loss(student, TEACHER), PLAIN[name](student, TEACHER))
        found, expected = (measure(some, network(), IMAGES, TEACHER)["gradient"] for some in (loss, PLAIN[name]))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_rows_partition_evenly(processes: int) -> None:
    parts = [rows_of(11, rank, processes) for rank in range(processes)]
    assert [row for part in parts for row in part] == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
