"""Sharded identity head on two processes with half of the batch and identities each, against `IdentityLoss`."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deocc.losses import IdentityLoss, ShardedIdentityLoss, identity_loss, sharded_identity_loss
from deocc.losses.distributed import rows_of
from deocc.losses.sharded_identity import choose_identities
from tests.losses.spawning import PROCESSES, Outcome, run_processes

BATCH, IDENTITIES, DIM = 4, 11, 6  # an odd number of identities: unequal shards
MARGINS = [("softmax", 0.0, 8.0), ("cosface", 0.35, 64.0), ("arcface", 0.5, 64.0)]
BY_MARGIN = pytest.mark.parametrize(("margin_type", "margin", "scale"), MARGINS)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, CENTERS = draw(PROCESSES * BATCH, 5, seed=0), draw(IDENTITIES, DIM, seed=1)
IDENTITY = torch.tensor([[0, 0, 0], [1, 10, 1], [10, 3, 3], [4, 5, 6], [5, 5, 4], [9, 2, 10], [7, 7, 7], [8, 8, 0]])
SHARE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2]] * 2)


def network() -> nn.Module:
    linear = nn.Linear(5, DIM, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(draw(DIM, 5, seed=2))
        linear.bias.copy_(draw(DIM, seed=3))
    return linear


class Model(nn.Module):
    """A student and its classifier in one module, as `DistributedDataParallel` receives them."""

    def __init__(self, classifier: IdentityLoss | ShardedIdentityLoss) -> None:
        super().__init__()
        self.student, self.classifier = network(), classifier.double()
        self.classifier.initialise(CENTERS)
        self._ddp_params_and_buffers_to_ignore = ["classifier.weight"]

    def forward(self, images: Tensor, *targets: Any) -> Tensor:
        loss: Tensor = self.classifier(self.student(images), *targets)
        return loss


def sharded(margin_type: str, margin: float, scale: float, sample_share: float = 1.0) -> Model:
    return Model(ShardedIdentityLoss(IDENTITIES, DIM, margin_type, margin, scale, sample_share))


def whole(margin_type: str, margin: float, scale: float) -> Model:
    return Model(IdentityLoss(IDENTITIES, DIM, margin_type, margin, scale))


def measure(model: Model, images: Tensor, *targets: Any, ddp: bool = False) -> Outcome:
    """Value and gradients of one step."""
    wrapped = DistributedDataParallel(model) if ddp else model  # kept until after the backward pass, with its hooks
    value = wrapped(images, *targets)
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in model.student.parameters() if parameter.grad is not None]
    rows = model.classifier.weight.grad
    assert rows is not None
    return {"value": value.detach(), "student": torch.cat(gradients), "rows": rows.to_dense()}


def compute(rank: int) -> Outcome:
    """Losses and gradients of one process."""
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    outcome: Outcome = {}
    for setting in MARGINS:
        outcome[setting[0]] = measure(sharded(*setting), IMAGES[own], IDENTITY[own], SHARE[own], ddp=True)
    for seed in (0, 1):
        model = sharded(*MARGINS[1], sample_share=0.4)
        outcome[f"sampled {seed}"] = measure(model, IMAGES[own], IDENTITY[own, 0], None, seed, ddp=True)
    model = sharded(*MARGINS[1], sample_share=1e-9)
    for identity in (0, 1):  # no row of the second process is chosen
        outcome[f"single {identity}"] = measure(model, IMAGES[own], torch.full((BATCH,), identity))
    with pytest.raises(ValueError, match=f"0 to {IDENTITIES - 1}, got 0 to {IDENTITIES}"):
        model(IMAGES[own], torch.tensor([0, 1, 2, IDENTITIES]) if rank else IDENTITY[own, 0])
    outcome["initial"] = ShardedIdentityLoss(IDENTITIES, DIM).weight.detach()
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Outcomes of both processes."""
    return run_processes(compute, tmp_path_factory.mktemp("processes"))


def assert_same(outcomes: list[Outcome], expected: Outcome) -> None:
    """Compare value, student gradient and concatenated row gradients with those of one process."""
    assert expected["student"].abs().min() > 1e-6 and expected["rows"].abs().max() > 1e-6
    for outcome in outcomes:
        torch.testing.assert_close(outcome["value"], expected["value"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(outcome["student"], expected["student"], rtol=1e-9, atol=1e-12)
    rows = torch.cat([outcome["rows"] for outcome in outcomes])
    torch.testing.assert_close(rows, expected["rows"], rtol=1e-9, atol=1e-12)


@BY_MARGIN
def test_sharded_equals_whole_classifier(
    margin_type: str, margin: float, scale: float, outcomes: list[Outcome]
) -> None:
    setting = (margin_type, margin, scale)
    expected = measure(whole(*setting), IMAGES, IDENTITY, SHARE.double())
    assert_same([outcome[margin_type] for outcome in outcomes], expected)
    assert_same([measure(sharded(*setting), IMAGES, IDENTITY, SHARE)], expected)
    unmixed = measure(whole(*setting), IMAGES, IDENTITY[:, 0])
    assert_same([measure(sharded(*setting), IMAGES, IDENTITY[:, 0])], unmixed)


@pytest.mark.parametrize("seed", [0, 1])
def test_sample_independent_of_processes(seed: int, outcomes: list[Outcome]) -> None:
    expected = measure(sharded(*MARGINS[1], sample_share=0.4), IMAGES, IDENTITY[:, 0], None, seed)
    assert_same([outcome[f"sampled {seed}"] for outcome in outcomes], expected)


def test_sampled_loss_equals_loss_of_chosen() -> None:
    identity = torch.tensor([0, 7, 7, 3])
    chosen = choose_identities(identity, IDENTITIES, range(IDENTITIES), 0.4, seed=5)
    assert {0, 3, 7} < set(chosen.tolist()) < set(range(IDENTITIES))
    sampled, full = sharded(*MARGINS[1], sample_share=0.4).classifier, sharded(*MARGINS[1]).classifier
    reference = IdentityLoss(len(chosen), DIM, *MARGINS[1]).double()
    reference.initialise(CENTERS[chosen])
    embedding = network()(IMAGES[:4]).detach()
    value = sampled(embedding, identity, None, 5)
    value.backward()
    expected = reference(embedding, torch.searchsorted(chosen, identity))
    expected.backward()
    torch.testing.assert_close(value, expected)
    gradient = sampled.weight.grad
    assert gradient is not None and reference.weight.grad is not None
    assert gradient.any(1).nonzero().flatten().tolist() == chosen.tolist()
    torch.testing.assert_close(gradient[chosen], reference.weight.grad)
    assert abs(value - full(embedding, identity)) > 1e-3


def test_process_without_chosen_rows(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        for single in (outcome["single 0"], outcome["single 1"]):
            assert single["value"] == 0  # a single identity has probability 1
            assert not single["rows"].any() and not single["student"].any()


def test_processes_start_with_different_rows(outcomes: list[Outcome]) -> None:
    first, second = (outcome["initial"] for outcome in outcomes)
    assert len(first) + len(second) == IDENTITIES
    assert not torch.isclose(first[0], second[0]).any()


def test_choose_identities() -> None:
    identity = torch.tensor([5, 99_999])
    samples = [choose_identities(identity, 100_000, range(100_000), 0.1, seed) for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert all(abs(len(sample) - 10_000) < 500 for sample in samples)  # five standard deviations
    assert all(torch.isin(identity, sample).all() for sample in samples)
    assert abs(int(torch.isin(samples[0], samples[2]).sum()) - 1_000) < 200
    halves = [choose_identities(identity, 100_000, rows_of(100_000, rank, 2), 0.1, 0) for rank in range(2)]
    assert torch.equal(torch.cat(halves), samples[0])


def test_sharded_loss_without_cancellation() -> None:
    """Terms of e^-60: subtracting the true identity's term from the sum of all would leave rounding only."""
    head = ShardedIdentityLoss(2, 2, "cosface", 0.35, 64.0)
    head.initialise(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert float(head(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).detach()) == pytest.approx(0.0, abs=1e-12)
    head.initialise(torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
    value = float(head(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).detach())
    assert value == pytest.approx(64 * 0.15, rel=1e-4)  # log(1 + e^(64 (0.8 - 0.65)))


def test_sharded_loss_defaults() -> None:
    embedding, identity, share = draw(4, DIM, seed=7), torch.tensor([[0], [10], [3], [3]]), torch.ones(4, 1)
    expected = identity_loss(F.normalize(embedding) @ F.normalize(CENTERS).T, identity[:, 0])
    for margin_type in ("softmax", "cosface"):
        found = sharded_identity_loss(embedding, CENTERS, torch.arange(IDENTITIES), identity, share, margin_type)
        torch.testing.assert_close(found, expected)


def test_sharded_loss_precision() -> None:
    head, embedding, identity = ShardedIdentityLoss(5, 8, "arcface", 0.5, 16.0), draw(3, 8, seed=6), torch.arange(3)
    half = embedding.bfloat16()
    assert head(half, identity).dtype == torch.float32
    assert torch.equal(head(half, identity), head(half.float(), identity))
    expected = head(embedding.float(), identity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(embedding.float(), identity), expected)
    small = sharded("arcface", 0.5, 4.0).classifier
    assert torch.autograd.gradcheck(lambda e: small(e, IDENTITY, SHARE), draw(8, DIM, seed=4).requires_grad_())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_identities": 0}, "needs an identity per process, got 0 for 1 processes"),
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"sample_share": 0.0}, r"sample_share must be in \(0, 1\], got 0.0"),
        ({"sample_share": 1.5}, "got 1.5"),
        ({"margin_type": "sphereface"}, "choose one of softmax"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_sharded_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardedIdentityLoss(**{"num_identities": 5, "dim": 4, **settings})


def test_sharded_bad_shapes() -> None:
    head, mixed = ShardedIdentityLoss(5, 4), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"\(5, 4\), got \(5, 3\)"):
        head.initialise(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 3\) and None"):
        head(torch.zeros(2, 4), mixed)
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 3\) and \(2, 2\)"):
        head(torch.zeros(2, 4), mixed, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"got \(2,\), \(2, 1\) and"):
        head(torch.zeros(2), mixed[:, 0])


def test_sharded_identity_out_of_range() -> None:
    head = ShardedIdentityLoss(5, 4)
    with pytest.raises(ValueError, match=r"0 to 4, got 1 to 5"):
        head(torch.zeros(2, 4), torch.tensor([1, 5]))
