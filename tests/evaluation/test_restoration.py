"""PSNR, SSIM and predicted-mask scores against NumPy oracles."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from deocc.evaluation.restoration import MaskPredictionMetric, RestorationMetric

SIDE = 24


def _images(seed: int = 0, number: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean faces, noisy copies, and masks that cover the lower half."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(number, 3, SIDE, SIDE, generator=generator) * 2 - 1
    restored = (face + 0.3 * torch.randn(face.shape, generator=generator)).clamp(-1, 1)
    mask = torch.zeros(number, 1, SIDE, SIDE)
    mask[:, :, SIDE // 2 :] = 1
    return restored, face, mask


def _scores(name: str, restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    """A score per image (B,), of the whole image or of the covered pixels; each image has its own kind."""
    metric = RestorationMetric()
    metric.update(restored, face, torch.ones_like(face[:, :1]) if mask is None else mask, torch.arange(len(face)))
    key = name if mask is None else f"{name}_covered"
    return torch.tensor([scores[key] for scores in metric.compute()["per_kind"].values()])


def psnr(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    return _scores("psnr", restored, face, mask)


def ssim(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    return _scores("ssim", restored, face, mask)


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. 2004 of one channel in [0, 1], by scipy's Gaussian filter: sigma 1.5, 11 x 11 pixels."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


@pytest.mark.parametrize("covered", [False, True])
def test_ssim_equals_published_formula(covered: bool) -> None:
    restored, face, mask = _images()
    values = ssim(restored, face, mask if covered else None)
    for b in range(len(face)):
        maps = [_ssim_map(*((x[b, c].double().numpy() + 1) / 2 for x in (restored, face))) for c in range(3)]
        expected = np.mean(maps, 0)[mask[b, 0].bool().numpy()].mean() if covered else np.mean(maps)
        assert float(values[b]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 3), (9, 12, 1), (SIDE - 4, 2, 4), (6, SIDE - 2, 2)])
def test_ssim_of_a_changed_patch(top: int, left: int, side: int) -> None:
    noisy, face, mask = _images()
    restored, patch = face.clone(), (..., slice(top, top + side), slice(left, left + side))
    restored[patch] = noisy[patch]
    for b in range(len(face)):
        maps = [_ssim_map(*((x[b, c].double().numpy() + 1) / 2 for x in (restored, face))) for c in range(3)]
        covered = mask[b, 0].bool().numpy()
        assert float(ssim(restored, face)[b]) == pytest.approx(np.mean(maps), abs=1e-6)
        assert float(ssim(restored, face, mask)[b]) == pytest.approx(np.mean(maps, 0)[covered].mean(), abs=1e-6)


def test_psnr_of_a_constant_error() -> None:
    face = torch.zeros(1, 3, 8, 8)
    assert float(psnr(face + 0.2, face)) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)


def test_covered_psnr_ignores_the_rest() -> None:
    face = torch.zeros(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :] = 1
    restored = face + 0.2 * mask
    assert float(psnr(restored, face, mask)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(restored, face)) == pytest.approx(
        20.0 + 10 * math.log10(4), abs=1e-4
    )  # a quarter of the pixels is wrong


def test_identical_images_get_best_scores() -> None:
    _, face, mask = _images()
    assert psnr(face, face, mask).tolist() == [100.0] * 3
    assert ssim(face, face, mask).tolist() == pytest.approx([1.0] * 3)


def test_covered_scores_of_bare_face_are_nan() -> None:
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


def test_metric_averages_by_kind() -> None:
    restored, face, mask = _images(number=5)
    mask[4] = 0
    kind = torch.tensor([2, 0, 2, 0, -1])
    metric = RestorationMetric()
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(restored[part], face[part], mask[part], kind[part])
    scores = metric.compute()
    error = (restored - face).double().square().numpy()
    whole = [10 * math.log10(4 / image.mean()) for image in error]
    covered = [10 * math.log10(4 / image[:, SIDE // 2 :].mean()) for image in error[:4]]
    assert scores["mean"]["psnr"] == pytest.approx(np.mean(whole), abs=1e-4)
    assert scores["mean"]["psnr_covered"] == pytest.approx(np.mean(covered), abs=1e-4)
    assert list(scores["per_kind"]) == [-1, 0, 2]
    assert scores["per_kind"][2]["psnr_covered"] == pytest.approx((covered[0] + covered[2]) / 2, abs=1e-4)
    one, other = ((images.double().numpy() + 1) / 2 for images in (restored, face))
    maps = [_ssim_map(one[b, c], other[b, c])[SIDE // 2 :] for b in (1, 3) for c in range(3)]
    assert scores["per_kind"][0]["ssim_covered"] == pytest.approx(np.mean(maps), abs=1e-5)
    assert math.isnan(scores["per_kind"][-1]["ssim_covered"])


def test_restoration_metric_keeps_nan() -> None:
    restored, face, mask = _images()
    restored[0] = math.nan
    metric = RestorationMetric()
    metric.update(restored, face, mask, torch.zeros(3, dtype=torch.int64))
    assert all(math.isnan(value) for value in metric.compute()["mean"].values())


def _batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Predicted masks, masks and kinds:

    bare faces, with and without a false alarm, and masked ones, of which one is missed.
    """
    generator = torch.Generator().manual_seed(0)
    batches = []
    for kind in (torch.tensor([-1, 2, 0, -1]), torch.tensor([0, 0, -1, 2])):
        mask = (torch.rand(4, 1, 6, 5, generator=generator) < 0.4).float() * (kind >= 0).view(4, 1, 1, 1)
        predicted = torch.rand(4, 1, 6, 5, generator=generator)
        batches.append((torch.where(predicted >= 0.1, predicted, 0.0), mask, kind))
    batches[0][0][0] = 0  # a bare face that is taken for bare
    batches[1][0][1] = 0  # a mask that is missed
    return batches


def _slow_scores(batches: list[tuple[Tensor, Tensor, Tensor]], wanted: int | None) -> dict[str, float]:
    """The three means over the images of a kind, or over all, one image at a time."""
    ious, recalls, found = [], [], []
    for predicted, mask, kind in batches:
        for guess, truth, number in zip(predicted.numpy(), mask.numpy(), kind.tolist(), strict=True):
            if wanted is not None and number != wanted:
                continue
            found.append(float(np.count_nonzero(guess) > 0))
            if truth.max() > 0:
                both = np.logical_and(guess > 0.5, truth > 0.5).sum()
                ious.append(both / np.logical_or(guess > 0.5, truth > 0.5).sum())
                recalls.append(both / (truth > 0.5).sum())
    means = [sum(values) / len(values) if values else math.nan for values in (ious, recalls, found)]
    return dict(zip(("iou", "recall", "found"), means, strict=True))


def test_mask_prediction_equals_the_oracle() -> None:
    metric = MaskPredictionMetric()
    for batch in _batches():
        metric.update(*batch)
    scores = metric.compute()
    assert scores["mean"] == pytest.approx(_slow_scores(_batches(), None))
    assert set(scores["per_kind"]) == {-1, 0, 2}
    for kind, found in scores["per_kind"].items():
        assert found == pytest.approx(_slow_scores(_batches(), kind), nan_ok=True)
    assert scores["per_kind"][-1]["found"] == pytest.approx(2 / 3)
    assert 0 < scores["per_kind"][0]["recall"] < 1
