import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips

from deocc.evaluation.perceptual import PerceptualDistance, perceptual_distance

SIDE = 32


def _images(number: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    restored, face = (torch.rand(number, 3, SIDE, SIDE, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(number, 1, SIDE, SIDE)
    mask[:, :, 13:] = 1
    return restored, face, mask


class _Maps(nn.Module):
    """Two small feature maps, the second at half the size."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("first", torch.randn(5, 3, 3, 3, generator=generator))
        self.register_buffer("second", torch.randn(7, 5, 3, 3, generator=generator))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        one = torch.conv2d(images, self.first, padding=1)
        return [one, torch.conv2d(one.relu(), self.second, padding=1, stride=2)]


def test_with_its_network_and_weights_it_is_torchmetrics_lpips() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        published = lpips._LPIPS(
            net="squeeze", pnet_rand=True
        )  # the published channel weights on a network of random ones
    restored, face, _ = _images()
    distance = perceptual_distance(
        lambda images: published.net(published.scaling_layer(images)),
        restored,
        face,
        weights=[lin.model[-1].weight.flatten() for lin in published.lins],
    )
    torch.testing.assert_close(distance, published(restored, face).flatten(), rtol=1e-4, atol=1e-7)
    assert float(distance.min()) > 1e-3


def test_covered_places_of_a_crop_that_is_not_square() -> None:
    restored, face, mask = (images[..., : SIDE // 2] for images in _images())
    found = perceptual_distance(lambda images: images, restored, face, mask)
    unit = [nn.functional.normalize(images, dim=1) for images in (restored, face)]
    torch.testing.assert_close(found, (unit[0] - unit[1]).square().sum(1)[:, 13:].mean((1, 2)))


def test_a_mask_of_another_size_is_refused() -> None:
    restored, face, mask = _images()
    with pytest.raises(ValueError, match="a mask"):
        PerceptualDistance(_Maps()).update(restored, face, mask[..., 1:], torch.zeros(3, dtype=torch.int64))


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


@pytest.mark.parametrize("covered", [False, True])
def test_distance_equals_a_loop_over_places_weighed_by_their_covered_share(covered: bool) -> None:
    restored, face, mask = _images(2)  # the mask starts on an odd row: places of the small map are half covered
    distance = perceptual_distance(_Maps(), restored, face, mask if covered else None)
    area = mask[0, 0].numpy() if covered else np.ones((SIDE, SIDE))
    assert distance.tolist() == pytest.approx([_slow(_Maps(), restored[i], face[i], area) for i in range(2)], rel=1e-5)


def test_covered_distance_sees_covered_places_only() -> None:
    restored, face, mask = _images()
    pasted = torch.where(mask.bool(), restored, face)
    one_map = torch.nn.Identity()
    torch.testing.assert_close(
        perceptual_distance(one_map, pasted, face, mask), perceptual_distance(one_map, restored, face, mask)
    )
    assert perceptual_distance(one_map, pasted, face, 1 - mask).tolist() == [0.0] * 3


def test_metric_is_the_mean_over_images_in_all_and_by_kind() -> None:
    restored, face, mask = _images(4)
    mask[3] = 0
    metric = PerceptualDistance(_Maps())
    for part, kind in ((slice(0, 1), [2]), (slice(1, 4), [0, 2, -1])):
        metric.update(restored[part], face[part], mask[part], torch.tensor(kind))
    scores = metric.compute()
    whole, covered = perceptual_distance(_Maps(), restored, face), perceptual_distance(_Maps(), restored, face, mask)
    assert scores["mean"]["perceptual"] == pytest.approx(float(whole.mean()), rel=1e-5)
    assert scores["mean"]["perceptual_covered"] == pytest.approx(float(covered[:3].mean()), rel=1e-5)
    assert scores["per_kind"][2]["perceptual_covered"] == pytest.approx(float(covered[[0, 2]].mean()), rel=1e-5)
    assert math.isnan(scores["per_kind"][-1]["perceptual_covered"])


@pytest.mark.parametrize("weights", [[torch.ones(5)], [torch.ones(5), torch.ones(5)]])
def test_weights_that_do_not_fit_are_refused(weights: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="C weights for each"):
        perceptual_distance(_Maps(), *_images()[:2], weights=weights)


def test_maps_without_places_are_refused() -> None:
    with pytest.raises(ValueError, match="expected feature maps"):
        perceptual_distance(lambda images: images.mean((2, 3)), *_images()[:2])
