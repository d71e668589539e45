"""Perceptual, Frechet and kernel distances; metrics across processes."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics import Metric
from torchmetrics.functional.image import lpips
from torchmetrics.image.kid import poly_mmd

from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.perceptual import Features, FrechetDistance, KernelDistance, PerceptualDistance
from deocc.evaluation.restoration import RestorationMetric

SIDE = 32


def _images(number: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    restored, face = (torch.rand(number, 3, SIDE, SIDE, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(number, 1, SIDE, SIDE)
    mask[:, :, 13:] = 1
    return restored, face, mask


def perceptual_distances(
    features: Features, restored: torch.Tensor, face: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Both distances per image (2, B); each image has its own kind."""
    metric = PerceptualDistance(features)
    metric.update(restored, face, mask, torch.arange(len(face)))
    scores = metric.compute()["per_kind"].values()
    return torch.tensor([[each[name] for each in scores] for name in ("perceptual", "perceptual_covered")])


def _pixels(images: torch.Tensor) -> list[torch.Tensor]:
    return [images]


class _Maps(nn.Module):
    """Two small feature maps, the second at half the size."""

    first: torch.Tensor
    second: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("first", torch.randn(5, 3, 3, 3, generator=generator))
        self.register_buffer("second", torch.randn(7, 5, 3, 3, generator=generator))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        one = torch.conv2d(images, self.first, padding=1)
        return [one, torch.conv2d(one.relu(), self.second, padding=1, stride=2)]


def test_distance_equals_torchmetrics_lpips() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        published = lpips._LPIPS(net="squeeze", pnet_rand=True)
    for layer in published.lins:
        nn.init.ones_(cast(Any, layer).model[-1].weight)
    restored, face, mask = _images()
    features = lambda images: published.net(published.scaling_layer(images))  # noqa: E731
    distance, _ = perceptual_distances(features, restored, face, mask)
    torch.testing.assert_close(distance, published(restored, face).flatten(), rtol=1e-4, atol=1e-7)
    assert float(distance.min()) > 1e-3


def _slow(maps: nn.Module, restored: torch.Tensor, face: torch.Tensor, mask: np.ndarray) -> float:
    """Of one image, place by place; `mask` (H, W)."""
    total = 0.0
    for one, other in zip(*(maps(image[None]) for image in (restored, face)), strict=True):
        a, b = one[0].double().numpy(), other[0].double().numpy()
        step = SIDE // a.shape[1]
        values, shares = [], []
        for i, j in np.ndindex(a.shape[1:]):
            u, v = a[:, i, j] / np.linalg.norm(a[:, i, j]), b[:, i, j] / np.linalg.norm(b[:, i, j])
            values.append(((u - v) ** 2).sum())
            shares.append(mask[i * step : (i + 1) * step, j * step : (j + 1) * step].mean())
        total += np.average(values, weights=shares)
    return total


@pytest.mark.parametrize("width", [SIDE, SIDE // 2])
def test_distance_equals_weighted_loop(width: int) -> None:
    restored, face, mask = (images[..., :width] for images in _images(2))
    # the mask starts on an odd row: places of the small map are half covered
    areas = (np.ones((SIDE, width)), mask[0, 0].numpy())
    for distance, area in zip(perceptual_distances(_Maps(), restored, face, mask), areas, strict=True):
        assert distance.tolist() == pytest.approx(
            [_slow(_Maps(), restored[i], face[i], area) for i in range(2)], rel=1e-5
        )


def test_covered_distance_ignores_the_rest() -> None:
    restored, face, mask = _images()
    pasted = torch.where(mask.bool(), restored, face)
    (_, covered), (_, expected) = (perceptual_distances(_pixels, images, face, mask) for images in (pasted, restored))
    torch.testing.assert_close(covered, expected)
    assert perceptual_distances(_pixels, pasted, face, 1 - mask)[1].tolist() == [0.0] * 3


def test_metric_averages_by_kind() -> None:
    restored, face, mask = _images(4)
    mask[3] = 0
    metric = PerceptualDistance(_Maps())
    for part, kind in ((slice(0, 1), [2]), (slice(1, 4), [0, 2, -1])):
        metric.update(restored[part], face[part], mask[part], torch.tensor(kind))
    scores = metric.compute()
    whole = [_slow(_Maps(), restored[i], face[i], np.ones((SIDE, SIDE))) for i in range(4)]
    covered = [_slow(_Maps(), restored[i], face[i], mask[0, 0].numpy()) for i in range(3)]
    assert scores["mean"]["perceptual"] == pytest.approx(np.mean(whole), rel=1e-5)
    assert scores["mean"]["perceptual_covered"] == pytest.approx(np.mean(covered), rel=1e-5)
    assert scores["per_kind"][2]["perceptual_covered"] == pytest.approx((covered[0] + covered[2]) / 2, rel=1e-5)
    assert math.isnan(scores["per_kind"][-1]["perceptual_covered"])


DIMENSION = 6


def _network(images: torch.Tensor) -> torch.Tensor:
    """Correlated float32 features (B, 6)."""
    features = torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1).double()
    mixed = torch.stack([features.roll(i, 1) @ torch.arange(1.0, 7.0).double() for i in range(DIMENSION)], 1)
    return (
        mixed.float()
    )  # float64 rounded once: the last digit of a float32 product depends on the batch size and the processor


def _crowds(restored: int = 40, face: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = 0.7 * torch.rand(restored, 3, 4, 4, generator=generator) - 0.3
    return one, torch.rand(face, 3, 4, 4, generator=generator) * 2 - 1


def test_frechet_equals_scipy_sqrtm() -> None:
    restored, face = _crowds()
    metric = FrechetDistance(_network, DIMENSION)
    metric.update(restored[:7], face[:30])
    metric.update(restored[7:], face[30:])
    a, b = (_network(images).double().numpy() for images in (restored, face))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)
    assert metric.compute().dtype == torch.float64


def test_frechet_of_equal_sets_is_zero() -> None:
    face = _crowds()[1]
    metric = FrechetDistance(_network, DIMENSION)
    metric.update(face, face)
    assert float(metric.compute()) == pytest.approx(0.0, abs=1e-5)


def test_kernel_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.evaluation.perceptual._ROWS", 16)
    restored, face = _crowds(40, 40)
    metric = KernelDistance(_network)
    for part in (slice(0, 9), slice(9, 40)):
        metric.update(restored[part], face[part])
    expected = poly_mmd(_network(face).double(), _network(restored).double())
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_of_unequal_sizes_equals_loop() -> None:
    restored, face = _crowds(5, 8)
    a, b = (_network(images).double().numpy() for images in (restored, face))

    def mean(first: np.ndarray, second: np.ndarray, alike: bool) -> float:
        return float(
            np.mean(
                [
                    (x @ y / DIMENSION + 1) ** 3
                    for i, x in enumerate(first)
                    for j, y in enumerate(second)
                    if not alike or i != j
                ]
            )
        )

    metric = KernelDistance(_network)
    metric.update(restored, face)
    assert float(metric.compute()) == pytest.approx(
        mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False), rel=1e-9
    )


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_set_distances_need_two_faces(name: str) -> None:
    message = "fewer than two faces were embedded: evaluate on at least two images"
    with pytest.warns(UserWarning, match="before the ``update`` method"), pytest.raises(ValueError, match=message):
        METRICS[name]().compute()
    metric = METRICS[name]()
    metric.update(*_crowds(1, 5))
    with pytest.raises(ValueError, match=message):
        metric.compute()


def _means(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


METRICS: dict[str, Callable[..., Metric]] = {
    "bank": EmbeddingBank,
    "restoration": RestorationMetric,
    "perceptual": lambda **settings: PerceptualDistance(_pixels, **settings),
    "frechet": lambda **settings: FrechetDistance(_means, 3, **settings),
    "kernel": lambda **settings: KernelDistance(_means, **settings),
}


def _batch(metric: Metric) -> tuple[torch.Tensor, ...]:
    """Arguments of the metric's `update`."""
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    ids = torch.arange(4)
    if isinstance(metric, EmbeddingBank):
        return torch.eye(4), ids, ids, ids, ids, ids / 4
    if isinstance(metric, FrechetDistance | KernelDistance):
        return restored, face
    return restored, face, torch.ones(4, 1, 16, 16), ids


def _plain(value: object) -> object:
    if isinstance(value, EmbeddingSet):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value


@pytest.mark.parametrize("name", METRICS)
def test_metrics_merge(name: str) -> None:
    whole, one, other = (METRICS[name]() for _ in range(3))
    batch = _batch(whole)
    whole.update(*batch)
    one.update(*(values[:2] for values in batch))
    other.update(*(values[2:] for values in batch))
    one.merge_state(other)
    torch.testing.assert_close(_plain(one.compute()), _plain(whole.compute()))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_synchronise_processes(name: str) -> None:
    def gather(state: torch.Tensor, group: object) -> list[torch.Tensor]:
        return [state, state]  # a second process that saw the same

    synchronised = METRICS[name](dist_sync_fn=gather, distributed_available_fn=lambda: True)
    alone = METRICS[name]()
    synchronised.update(*_batch(synchronised))
    for _ in range(2):
        alone.update(*_batch(alone))
    torch.testing.assert_close(_plain(synchronised.compute()), _plain(alone.compute()), equal_nan=True)
