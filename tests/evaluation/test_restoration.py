import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deocc.evaluation import RestorationMetric, psnr, ssim

SIDE = 24


def _images(seed: int = 0, number: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean faces, noisy copies, and masks that cover the lower half."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(number, 3, SIDE, SIDE, generator=generator) * 2 - 1
    restored = (face + 0.3 * torch.randn(face.shape, generator=generator)).clamp(-1, 1)
    mask = torch.zeros(number, 1, SIDE, SIDE)
    mask[:, :, SIDE // 2 :] = 1
    return restored, face, mask


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. 2004 of one channel in [0, 1], by scipy's Gaussian filter: sigma 1.5, 11 x 11 pixels."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


@pytest.mark.parametrize("covered", [False, True])
def test_ssim_equals_the_published_formula_on_images_in_0_1(covered: bool) -> None:
    restored, face, mask = _images()
    values = ssim(restored, face, mask if covered else None)
    for b in range(len(face)):
        maps = [_ssim_map(*((x[b, c].double().numpy() + 1) / 2 for x in (restored, face))) for c in range(3)]
        expected = np.mean(maps, 0)[mask[b, 0].bool().numpy()].mean() if covered else np.mean(maps)
        assert float(values[b]) == pytest.approx(expected, abs=1e-5)


def test_psnr_of_a_constant_error() -> None:
    face = torch.zeros(1, 3, 8, 8)
    assert float(psnr(face + 0.2, face)) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)


def test_covered_psnr_sees_covered_pixels_only() -> None:
    face = torch.zeros(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :] = 1
    restored = face + 0.2 * mask
    assert float(psnr(restored, face, mask)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(restored, face)) == pytest.approx(
        20.0 + 10 * math.log10(4), abs=1e-4
    )  # a quarter of the pixels is wrong


def test_an_identical_image_gets_the_cap_and_one() -> None:
    _, face, mask = _images()
    assert psnr(face, face, mask).tolist() == [100.0] * 3
    assert ssim(face, face, mask).tolist() == pytest.approx([1.0] * 3)


def test_covered_scores_of_an_uncovered_image_are_nan() -> None:
    restored, face, mask = _images()
    mask[1] = 0
    assert (
        psnr(restored, face, mask).isnan().tolist()
        == ssim(restored, face, mask).isnan().tolist()
        == [False, True, False]
    )


def test_autocast_does_not_change_ssim() -> None:
    restored, face, _ = _images()
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(restored, face)
    torch.testing.assert_close(inside, ssim(restored, face))


def test_metric_is_the_mean_over_images_in_all_and_by_kind() -> None:
    restored, face, mask = _images(number=5)
    mask[4] = 0
    kind = torch.tensor([2, 0, 2, 0, -1])
    metric = RestorationMetric()
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(restored[part], face[part], mask[part], kind[part])
    scores = metric.compute()
    covered = psnr(restored, face, mask)
    assert scores["mean"]["psnr"] == pytest.approx(float(psnr(restored, face).mean()), abs=1e-4)
    assert scores["mean"]["psnr_covered"] == pytest.approx(float(covered[:4].mean()), abs=1e-4)
    assert list(scores["per_kind"]) == [-1, 0, 2]
    assert scores["per_kind"][2]["psnr_covered"] == pytest.approx(float(covered[[0, 2]].mean()), abs=1e-4)
    assert scores["per_kind"][0]["ssim_covered"] == pytest.approx(
        float(ssim(restored, face, mask)[[1, 3]].mean()), abs=1e-5
    )
    assert math.isnan(scores["per_kind"][-1]["ssim_covered"])


def test_metric_does_not_hide_a_restoration_that_is_not_a_number() -> None:
    restored, face, mask = _images()
    restored[0] = math.nan
    metric = RestorationMetric()
    metric.update(restored, face, mask, torch.zeros(3, dtype=torch.int64))
    assert all(math.isnan(value) for value in metric.compute()["mean"].values())


def test_shapes_that_do_not_fit_are_refused() -> None:
    restored, face, mask = _images()
    with pytest.raises(ValueError, match="two images"):
        psnr(restored[:2], face)
    with pytest.raises(ValueError, match="a mask"):
        ssim(restored, face, mask[:, 0])


@pytest.mark.parametrize("kind", [[0, 0], [0, 0, -2], [0, 0, 63]])
def test_kinds_out_of_range_are_refused(kind: list[int]) -> None:
    with pytest.raises(ValueError, match="kinds of shape"):
        RestorationMetric().update(*_images(), torch.tensor(kind))
