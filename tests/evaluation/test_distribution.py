import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from deocc.evaluation.perceptual import FrechetDistance, KernelDistance

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


def test_frechet_distance_equals_scipys_matrix_root_and_batches_add_up() -> None:
    restored, face = _crowds()
    metric = FrechetDistance(_network, DIMENSION)
    metric.update(restored[:7], face[:30])
    metric.update(restored[7:], face[30:])
    a, b = (_network(images).double().numpy() for images in (restored, face))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)
    assert metric.compute().dtype == torch.float64


def test_frechet_distance_of_a_crowd_to_itself_is_zero() -> None:
    face = _crowds()[1]
    metric = FrechetDistance(_network, DIMENSION)
    metric.update(face, face)
    assert float(metric.compute()) == pytest.approx(0.0, abs=1e-5)


def test_kernel_distance_equals_torchmetrics_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.evaluation.perceptual._ROWS", 16)
    restored, face = _crowds(40, 40)
    metric = KernelDistance(_network)
    for part in (slice(0, 9), slice(9, 40)):
        metric.update(restored[part], face[part])
    expected = poly_mmd(_network(face).double(), _network(restored).double())
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_of_crowds_of_unequal_size_equals_a_loop_over_pairs() -> None:
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


@pytest.mark.parametrize(
    "metric", [FrechetDistance(_network, DIMENSION), KernelDistance(_network)], ids=["frechet", "kernel"]
)
def test_fewer_than_two_faces_are_refused(metric: FrechetDistance | KernelDistance) -> None:
    metric.reset()
    metric.update(*_crowds(1, 5))
    with pytest.raises(ValueError, match="1 completed and 5 clean faces"):
        metric.compute()


def test_no_faces_at_all_are_refused() -> None:
    for metric in (FrechetDistance(_network, DIMENSION), KernelDistance(_network)):
        with (
            pytest.warns(UserWarning, match="before the ``update`` method"),
            pytest.raises(ValueError, match="0 completed and 0 clean"),
        ):
            metric.compute()


def test_a_network_that_does_not_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="expected features \\(B, D\\) of 4 images"):
        KernelDistance(lambda images: images).update(*_crowds(4, 4))
