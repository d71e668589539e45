"""The sharded identity head: two processes with half a batch and half the identities, compared with one that has all."""

import gc
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from deocc.losses import IdentityLoss, identity_loss
from deocc.losses.distributed import rows_of
from deocc.losses.sharded_identity import ShardedIdentityLoss, choose_identities, sharded_identity_loss

PROCESSES, BATCH, PEOPLE, DIM, LIMIT = 2, 4, 11, 6, 120  # an odd number of people: unequal shards; LIMIT in seconds
MARGINS = [("softmax", 0.0, 8.0), ("cosface", 0.35, 64.0), ("arcface", 0.5, 64.0)]
BY_MARGIN = pytest.mark.parametrize(("margin_type", "margin", "scale"), MARGINS)
Outcome = dict[str, Any]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, CENTERS = draw(PROCESSES * BATCH, 5, seed=0), draw(PEOPLE, DIM, seed=1)
IDENTITY = torch.tensor([[0, 0, 0], [1, 10, 1], [10, 3, 3], [4, 5, 6], [5, 5, 4], [9, 2, 10], [7, 7, 7], [8, 8, 0]])
SHARE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2]] * 2)


def network() -> nn.Module:
    linear = nn.Linear(5, DIM, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(draw(DIM, 5, seed=2))
        linear.bias.copy_(draw(DIM, seed=3))
    return linear


class Trained(nn.Module):
    """A student and its classifier under one roof, as `DistributedDataParallel` gets them."""

    def __init__(self, classifier: IdentityLoss | ShardedIdentityLoss) -> None:
        super().__init__()
        self.student, self.classifier = network(), classifier.double()
        self.classifier.initialise(CENTERS)
        self._ddp_params_and_buffers_to_ignore = ["classifier.weight"]

    def forward(self, images: Tensor, *targets: Any) -> Tensor:
        loss: Tensor = self.classifier(self.student(images), *targets)
        return loss


def outcome_of(trained: nn.Module, trainee: Trained, images: Tensor, *targets: Any) -> Outcome:
    value = trained(images, *targets)
    value.backward()
    gradients = [parameter.grad for parameter in trainee.student.parameters()]
    rows = trainee.classifier.weight.grad
    assert rows is not None
    student = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    return {"value": value.detach(), "student": student, "rows": rows.to_dense(), "sparse": rows.is_sparse}


def sharded(margin_type: str, margin: float, scale: float, sample_share: float = 1.0) -> Trained:
    return Trained(ShardedIdentityLoss(PEOPLE, DIM, margin_type, margin, scale, sample_share))


def whole(margin_type: str, margin: float, scale: float) -> Trained:
    return Trained(IdentityLoss(PEOPLE, DIM, margin_type, margin, scale))


def one_process(rank: int, folder: str) -> None:
    """What each of the processes computes from its own half, written to a file of its own."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=LIMIT / 2)
    )
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    outcome: Outcome = {}
    for setting in MARGINS:
        trainee = sharded(*setting)
        trained = DistributedDataParallel(trainee)
        outcome[setting[0]] = outcome_of(trained, trainee, IMAGES[own], IDENTITY[own], SHARE[own])
    for seed in (0, 1):
        trainee = sharded(*MARGINS[1], sample_share=0.4)
        trained = DistributedDataParallel(trainee)
        outcome[f"sampled {seed}"] = outcome_of(trained, trainee, IMAGES[own], IDENTITY[own, 0], None, seed)
    trainee = sharded(*MARGINS[1], sample_share=1e-9)
    for person in (0, 1):  # nobody of the second process's rows takes part
        outcome[f"lonely {person}"] = outcome_of(trainee, trainee, IMAGES[own], torch.full((BATCH,), person))
    with pytest.raises(ValueError, match=f"0 to {PEOPLE - 1}, got 0 to {PEOPLE}"):
        trainee(IMAGES[own], torch.tensor([0, 1, 2, PEOPLE]) if rank else IDENTITY[own, 0])
    outcome["initial"] = ShardedIdentityLoss(PEOPLE, DIM).weight.detach()
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


def assert_same(outcomes: list[Outcome], expected: Outcome) -> None:
    """Every process has the value and the student's gradient of one process; their rows' gradients, put together, are its own."""
    assert expected["student"].abs().min() > 1e-6 and expected["rows"].abs().max() > 1e-6
    for outcome in outcomes:
        torch.testing.assert_close(outcome["value"], expected["value"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(outcome["student"], expected["student"], rtol=1e-9, atol=1e-12)
    rows = torch.cat([outcome["rows"] for outcome in outcomes])
    torch.testing.assert_close(rows, expected["rows"], rtol=1e-9, atol=1e-12)


@BY_MARGIN
def test_two_processes_equal_one_whole_classifier_on_the_joined_batch(
    margin_type: str, margin: float, scale: float, outcomes: list[Outcome]
) -> None:
    trainee = whole(margin_type, margin, scale)
    assert_same(
        [outcome[margin_type] for outcome in outcomes], outcome_of(trainee, trainee, IMAGES, IDENTITY, SHARE.double())
    )


@BY_MARGIN
def test_one_process_with_all_identities_has_the_whole_classifiers_loss(
    margin_type: str, margin: float, scale: float
) -> None:
    ours, theirs = sharded(margin_type, margin, scale), whole(margin_type, margin, scale)
    assert_same(
        [outcome_of(ours, ours, IMAGES, IDENTITY, SHARE)], outcome_of(theirs, theirs, IMAGES, IDENTITY, SHARE.double())
    )
    ours, theirs = sharded(margin_type, margin, scale), whole(margin_type, margin, scale)
    assert_same([outcome_of(ours, ours, IMAGES, IDENTITY[:, 0])], outcome_of(theirs, theirs, IMAGES, IDENTITY[:, 0]))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_does_not_depend_on_the_number_of_processes(seed: int, outcomes: list[Outcome]) -> None:
    trainee = sharded(*MARGINS[1], sample_share=0.4)
    assert_same(
        [outcome[f"sampled {seed}"] for outcome in outcomes],
        outcome_of(trainee, trainee, IMAGES, IDENTITY[:, 0], None, seed),
    )


def test_a_sampled_step_is_the_whole_loss_over_the_chosen_identities_alone() -> None:
    identity = torch.tensor([0, 7, 7, 3])
    chosen = choose_identities(identity, PEOPLE, range(PEOPLE), 0.4, seed=5)
    assert {0, 3, 7} < set(chosen.tolist()) < set(range(PEOPLE))
    found = sharded(*MARGINS[1], sample_share=0.4)
    expected = Trained(ShardedIdentityLoss(PEOPLE, DIM, *MARGINS[1]))
    rows = IdentityLoss(len(chosen), DIM, *MARGINS[1]).double()
    rows.initialise(CENTERS[chosen])
    embedding = network()(IMAGES[:4]).detach()
    value = found.classifier(embedding, identity, None, 5)
    value.backward()
    theirs = rows(embedding, torch.searchsorted(chosen, identity))
    theirs.backward()
    torch.testing.assert_close(value, theirs)
    gradient = found.classifier.weight.grad
    assert gradient is not None and rows.weight.grad is not None
    assert gradient.is_sparse and gradient.coalesce().indices()[0].tolist() == chosen.tolist()
    torch.testing.assert_close(gradient.coalesce().values(), rows.weight.grad)
    assert abs(value - expected.classifier(embedding, identity)) > 1e-3


def test_a_process_none_of_whose_rows_take_part_adds_nothing(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        for lonely in (outcome["lonely 0"], outcome["lonely 1"]):
            assert lonely["value"] == 0  # one identity alone is certain
            assert not lonely["rows"].any() and not lonely["student"].any()


def test_processes_start_with_different_rows(outcomes: list[Outcome]) -> None:
    first, second = (outcome["initial"] for outcome in outcomes)
    assert len(first) + len(second) == PEOPLE
    assert not torch.isclose(first[0], second[0]).any()


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shards_cover_all_identities_once_and_evenly(processes: int) -> None:
    shards = [rows_of(PEOPLE, rank, processes) for rank in range(processes)]
    assert [row for shard in shards for row in shard] == list(range(PEOPLE))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_sample_follows_from_the_seed_and_has_the_share_asked_for() -> None:
    identity = torch.tensor([5, 99_999])
    samples = [choose_identities(identity, 100_000, range(100_000), 0.1, seed) for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert all(abs(len(sample) - 10_000) < 500 for sample in samples)  # five standard deviations
    assert all(torch.isin(identity, sample).all() for sample in samples)
    assert abs(int(torch.isin(samples[0], samples[2]).sum()) - 1_000) < 200
    halves = [choose_identities(identity, 100_000, rows_of(100_000, rank, 2), 0.1, 0) for rank in range(2)]
    assert torch.equal(torch.cat(halves), samples[0])


def test_the_loss_stays_finite_and_exact_where_the_own_identity_leaves_nothing_to_the_others() -> None:
    """Terms of e^-60: taking the own identity's out of the sum of all would leave rounding alone."""
    ours = ShardedIdentityLoss(2, 2, "cosface", 0.35, 64.0)
    ours.initialise(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    value = ours(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)
    ours.initialise(torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
    value = ours(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(value.detach()) == pytest.approx(64 * 0.15, rel=1e-4)  # log(1 + e^(64 (0.8 - 0.65)))


def test_without_settings_it_is_the_plain_classifiers_loss() -> None:
    embedding, identity, share = draw(4, DIM, seed=7), torch.tensor([[0], [10], [3], [3]]), torch.ones(4, 1)
    expected = identity_loss(F.normalize(embedding) @ F.normalize(CENTERS).T, identity[:, 0])
    everybody = torch.arange(PEOPLE)
    torch.testing.assert_close(sharded_identity_loss(embedding, CENTERS, everybody, identity, share), expected)
    torch.testing.assert_close(
        sharded_identity_loss(embedding, CENTERS, everybody, identity, share, "cosface"), expected
    )


def test_a_half_precision_embedding_is_compared_in_float32() -> None:
    head, embedding, identity = ShardedIdentityLoss(5, 8), draw(3, 8, seed=6).bfloat16(), torch.tensor([0, 4, 2])
    found = head(embedding, identity)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(embedding.float(), identity))


def test_gradcheck() -> None:
    head = sharded("arcface", 0.5, 4.0).classifier
    assert torch.autograd.gradcheck(lambda e: head(e, IDENTITY, SHARE), draw(8, DIM, seed=4).requires_grad_())


def test_autocast_changes_nothing() -> None:
    head, embedding, identity = (
        ShardedIdentityLoss(5, 8, "arcface", 0.5, 16.0),
        draw(3, 8, seed=6).float(),
        torch.tensor([0, 4, 2]),
    )
    expected = head(embedding, identity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(embedding, identity), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_identities": 0}, "an identity a process"),
        ({"dim": 0}, "positive dim"),
        ({"sample_share": 0.0}, r"sample_share must lie in \(0, 1\], got 0.0"),
        ({"sample_share": 1.5}, "got 1.5"),
        ({"margin_type": "sphereface"}, "choose one of softmax"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardedIdentityLoss(**{"num_identities": 5, "dim": 4, **settings})


def test_shapes_that_do_not_fit_are_refused() -> None:
    head = ShardedIdentityLoss(5, 4)
    with pytest.raises(ValueError, match=r"\(5, 4\), got \(5, 3\)"):
        head.initialise(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 3\) and None"):
        head(torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 3\) and \(2, 2\)"):
        head(torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"got \(2,\), \(2, 1\) and"):
        head(torch.zeros(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0 to 4, got 1 to 5"):
        head(torch.zeros(2, 4), torch.tensor([1, 5]))
