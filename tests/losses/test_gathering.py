"""Two processes with half a batch each, compared with one process that has the whole batch."""

import gc
import os
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from deocc.losses import (
    gather_embeddings,
    gathered_pair_relation_loss,
    gathered_triplet_relation_loss,
    pair_relation_loss,
    triplet_relation_loss,
)

PROCESSES, BATCH, MOST_VERTICES, TURNS, LIMIT = 2, 4, 3, 2, 120  # LIMIT in seconds, after which a hang is a failure
GATHERED = {"pair": gathered_pair_relation_loss, "triplet": gathered_triplet_relation_loss}
PLAIN = {"pair": pair_relation_loss, "triplet": triplet_relation_loss}
RELATIONS = pytest.mark.parametrize("name", ["pair", "triplet"])
Outcome = dict[str, Any]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, TEACHER, SLOPES = draw(8, 6, seed=0), draw(8, 3, seed=1), draw(8, 6, seed=2)


def network() -> nn.Module:
    linear = nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(draw(4, 6, seed=3) / 2)
        linear.bias.copy_(draw(4, seed=4) / 2)
    return nn.Sequential(
        linear, nn.Tanh()
    )  # the relations do not see a shift: without tanh the bias would have no gradient


def measure(loss: Any, student: nn.Module, images: Tensor, teacher: Tensor) -> Outcome:
    value = loss(student(images), teacher)
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    return {"value": value.detach(), "gradient": torch.cat(gradients)}


def refusal(loss: Any, student: Tensor, teacher: Tensor) -> str:
    with pytest.raises(ValueError, match="batch size") as refused:
        loss(student, teacher)
    return str(refused.value)


def one_process(rank: int, folder: str) -> None:
    """What each of the processes computes from its own half, written to a file of its own."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=LIMIT / 2)
    )
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    images, teacher = IMAGES[own], TEACHER[own]
    outcome: Outcome = {}
    for name, loss in GATHERED.items():
        outcome[name] = measure(loss, network(), images, teacher)
        outcome[f"ddp {name}"] = measure(loss, DistributedDataParallel(network()), images, teacher)
        outcome[f"ungathered {name}"] = measure(PLAIN[name], network(), images, teacher)
        outcome[f"uneven {name}"] = refusal(loss, images[rank:], teacher[rank:])
    for turn in range(TURNS):
        outcome[f"turn {turn}"] = measure(
            partial(gathered_triplet_relation_loss, max_vertices=MOST_VERTICES, turn=turn), network(), images, teacher
        )
    leaf = images.T.contiguous().T.requires_grad_()  # not contiguous
    joined = gather_embeddings(leaf)
    ((rank + 1) * joined * SLOPES).sum().backward()
    outcome["gather"] = {"value": joined.detach(), "gradient": leaf.grad}
    torch.save(outcome, f"{folder}/{rank}.pt")
    dist.barrier()  # neither leaves while the other still needs it
    gc.collect()  # DDP's modules lie in cycles that hold the process group
    dist.destroy_process_group()
    os._exit(
        0
    )  # gloo's threads, where any are left, may abort while an interpreter is taken down: nothing that is tested here


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Both processes' results; fails where they do not end in time."""
    folder, deadline = tmp_path_factory.mktemp("processes"), time.monotonic() + LIMIT
    context = spawn(one_process, (str(folder),), nprocs=PROCESSES, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def mean(outcomes: list[Outcome], name: str, key: str) -> Tensor:
    return torch.stack([outcome[name][key] for outcome in outcomes]).mean(0)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@RELATIONS
def test_two_processes_equal_one_on_the_joined_batch(name: str, outcomes: list[Outcome]) -> None:
    expected = measure(PLAIN[name], network(), IMAGES, TEACHER)
    assert expected["gradient"].abs().min() > 1e-6
    for key in ("value", "gradient"):
        assert_close(mean(outcomes, name, key), expected[key])


@RELATIONS
def test_distributed_data_parallel_gives_every_process_the_gradient_of_the_joined_batch(
    name: str, outcomes: list[Outcome]
) -> None:
    expected = measure(PLAIN[name], network(), IMAGES, TEACHER)
    assert_close(mean(outcomes, f"ddp {name}", "value"), expected["value"])
    for outcome in outcomes:
        assert_close(outcome[f"ddp {name}"]["gradient"], expected["gradient"])


@RELATIONS
def test_without_gathering_two_processes_differ_from_one(name: str, outcomes: list[Outcome]) -> None:
    expected = measure(PLAIN[name], network(), IMAGES, TEACHER)
    for key in ("value", "gradient"):
        difference = mean(outcomes, f"ungathered {name}", key) - expected[key]
        assert difference.norm() > 0.05 * expected[key].norm()


def test_every_process_has_the_whole_pair_loss_and_its_own_share_of_the_triplet_loss(outcomes: list[Outcome]) -> None:
    student = network()(IMAGES).detach()
    for rank, outcome in enumerate(outcomes):
        assert_close(outcome["pair"]["value"], pair_relation_loss(student, TEACHER))
        own = slice(rank * BATCH, (rank + 1) * BATCH)
        assert_close(outcome["triplet"]["value"], PROCESSES * triplet_relation_loss(student, TEACHER, vertices=own))
    assert abs(outcomes[0]["triplet"]["value"] - outcomes[1]["triplet"]["value"]) > 1e-3


def test_estimates_from_some_vertices_average_over_turns_and_processes_to_one_process_on_the_joined_batch(
    outcomes: list[Outcome],
) -> None:
    expected = measure(triplet_relation_loss, network(), IMAGES, TEACHER)
    for key in ("value", "gradient"):
        assert_close(torch.stack([mean(outcomes, f"turn {turn}", key) for turn in range(TURNS)]).mean(0), expected[key])
        assert (mean(outcomes, "turn 0", key) - expected[key]).norm() > 1e-3 * expected[key].norm()


def test_every_process_estimates_from_its_own_images_alone(outcomes: list[Outcome]) -> None:
    student = network()(IMAGES).detach()
    for rank, outcome in enumerate(outcomes):
        for turn in range(TURNS):
            taken = slice(rank * BATCH + turn, (rank + 1) * BATCH, TURNS)
            share = triplet_relation_loss(student, TEACHER, vertices=taken)
            assert_close(outcome[f"turn {turn}"]["value"], PROCESSES * TURNS * share)


def test_gathering_keeps_the_order_and_sums_the_gradients_of_all_processes(outcomes: list[Outcome]) -> None:
    for rank, outcome in enumerate(outcomes):
        assert torch.equal(outcome["gather"]["value"], IMAGES)
        assert_close(outcome["gather"]["gradient"], (1 + 2) * SLOPES[rank * BATCH : (rank + 1) * BATCH])


@RELATIONS
def test_unequal_batches_are_refused_in_every_process_with_all_sizes(name: str, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert f"got {BATCH}, {BATCH - 1}: pad or drop" in outcome[f"uneven {name}"]


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_shares_of_the_vertices_sum_to_the_whole_loss(chunk_size: int) -> None:
    whole = measure(triplet_relation_loss, network(), IMAGES, TEACHER)
    shares = [
        measure(lambda s, t, taken=taken: triplet_relation_loss(s, t, chunk_size, taken), network(), IMAGES, TEACHER)
        for taken in (slice(0, 1), slice(1, 8, 2), slice(2, None, 2))
    ]
    for key in ("value", "gradient"):
        assert_close(torch.stack([share[key] for share in shares]).sum(0), whole[key])


def test_estimates_start_with_turn_zero_and_a_chunk_size_of_zero_is_refused() -> None:
    student = network()(IMAGES)
    first, second = (gathered_triplet_relation_loss(student, TEACHER, max_vertices=3, turn=turn) for turn in (0, 1))
    assert torch.equal(gathered_triplet_relation_loss(student, TEACHER, max_vertices=3), first)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="chunk_size"):
        gathered_triplet_relation_loss(student, TEACHER, chunk_size=0)


def test_one_process_alone_gathers_nothing_and_has_the_plain_losses() -> None:
    student = network()(IMAGES)
    assert gather_embeddings(student) is student
    for name, loss in GATHERED.items():
        assert torch.equal(loss(student, TEACHER), PLAIN[name](student, TEACHER))
        found, expected = (measure(some, network(), IMAGES, TEACHER)["gradient"] for some in (loss, PLAIN[name]))
        assert torch.equal(found, expected)
