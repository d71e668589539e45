"""What two processes saw, merged as torch.distributed would merge it, is what one process would have seen."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torchmetrics import Metric

from deocc.evaluation import EmbeddingBank, RestorationMetric, VerificationMetric
from deocc.evaluation.perceptual import FrechetDistance, KernelDistance, PerceptualDistance


def test_verification_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, same = torch.rand(60, generator=generator), torch.rand(60, generator=generator) < 0.5
    whole, one, other = (VerificationMetric() for _ in range(3))
    whole.update(similarity, same)
    one.update(similarity[:25], same[:25])
    other.update(similarity[25:], same[25:])
    one.merge_state(other)
    assert one.compute() == pytest.approx(whole.compute(), nan_ok=True)


def test_restoration_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask, kind = torch.ones(4, 1, 16, 16), torch.tensor([0, 1, 1, 0])
    whole, one, other = (RestorationMetric() for _ in range(3))
    whole.update(restored, face, mask, kind)
    one.update(restored[:1], face[:1], mask[:1], kind[:1])
    other.update(restored[1:], face[1:], mask[1:], kind[1:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute())


def test_bank_merges_and_drops_what_both_saw(make_sets) -> None:
    _, probe = make_sets(1.0)
    probe.coverage = torch.linspace(0, 1, len(probe))
    one, other = EmbeddingBank(), EmbeddingBank()
    for bank, part in ((one, slice(0, 100)), (other, slice(90, len(probe)))):
        bank.update(
            *(
                value[part]
                for value in (probe.embedding, probe.identity, probe.index, probe.kind, probe.seed, probe.coverage)
            )
        )
    one.merge_state(other)
    assert len(one.compute()) == len(probe)
    assert one.compute().coverage.sort().values.tolist() == probe.coverage.tolist()


def test_perceptual_distance_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    mask, kind = torch.ones(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])
    whole, one, other = (PerceptualDistance(torch.nn.Identity()) for _ in range(3))
    whole.update(restored, face, mask, kind)
    one.update(restored[:1], face[:1], mask[:1], kind[:1])
    other.update(restored[1:], face[1:], mask[1:], kind[1:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute())


def _means(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


@pytest.mark.parametrize(
    "make", [lambda: FrechetDistance(_means, 3), lambda: KernelDistance(_means)], ids=["frechet", "kernel"]
)
def test_distances_of_crowds_merge(make: Callable[[], Metric]) -> None:
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(9, 3, 4, 4, generator=generator) * 2 - 1 for _ in range(2))
    whole, one, other = (make() for _ in range(3))
    whole.update(restored, face)
    one.update(restored[:2], face[:4])
    other.update(restored[2:], face[4:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute())


def _batch(metric: Metric) -> tuple[torch.Tensor, ...]:
    """What the metric's `update` takes."""
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    ids = torch.arange(4)
    if isinstance(metric, EmbeddingBank):
        return torch.eye(4), ids, ids, ids, ids, ids / 4
    if isinstance(metric, VerificationMetric):
        return face[:, 0, 0, 0], ids % 2 == 0
    if isinstance(metric, FrechetDistance | KernelDistance):
        return restored, face
    return restored, face, torch.ones(4, 1, 16, 16), ids


@pytest.mark.parametrize(
    "make",
    [
        EmbeddingBank,
        VerificationMetric,
        RestorationMetric,
        lambda **settings: PerceptualDistance(torch.nn.Identity(), **settings),
        lambda **settings: FrechetDistance(_means, 3, **settings),
        lambda **settings: KernelDistance(_means, **settings),
    ],
    ids=["bank", "verification", "restoration", "perceptual", "frechet", "kernel"],
)
def test_a_synchronised_metric_equals_one_that_saw_what_every_process_did(make: Callable[..., Metric]) -> None:
    def gather(state: torch.Tensor, group: object) -> list[torch.Tensor]:
        return [state, state]  # a second process that saw the same

    synchronised = make(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    alone = make()
    synchronised.update(*_batch(synchronised))
    for _ in range(2):
        alone.update(*_batch(alone))
    got, expected = (metric.compute() for metric in (synchronised, alone))
    if isinstance(alone, EmbeddingBank):
        got, expected = (
            {field.name: getattr(members, field.name) for field in fields(members)} for members in (got, expected)
        )
    torch.testing.assert_close(got, expected, equal_nan=True)
