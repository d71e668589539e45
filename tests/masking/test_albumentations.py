"""The renderer inside an albumentations pipeline."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

import deocc  # noqa: F401  # prepares the environment before albumentations is imported
from deocc.masking.albumentations import MaskFace

albumentations = pytest.importorskip("albumentations")


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(60, 200, (96, 96, 3), dtype=np.uint8)


def test_mask_marks_changed_pixels(image: NDArray[np.uint8]) -> None:
    result = MaskFace(p=1.0)(image=image, label=7)
    changed = (result["image"] != image).any(-1)
    mask = result["occlusion_mask"]
    assert (
        result["label"] == 7 and mask.dtype == np.uint8 and mask.shape == (96, 96) and result["image"].dtype == np.uint8
    )
    assert changed.any() and not changed[mask == 0].any() and changed[mask == 1].mean() > 0.9


def test_seed_of_the_pipeline(image: NDArray[np.uint8]) -> None:
    def run(seed: int) -> list[NDArray[np.uint8]]:
        pipeline = albumentations.Compose([MaskFace(p=1.0)], seed=seed)
        return [pipeline(image=image)["image"] for _ in range(3)]

    first, again, other = run(1), run(1), run(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])


def test_not_applied_gives_empty_mask(image: NDArray[np.uint8]) -> None:
    result = MaskFace(p=0.0)(image=image)
    assert np.array_equal(result["image"], image) and not result["occlusion_mask"].any()


def test_spatial_transforms_move_mask(image: NDArray[np.uint8]) -> None:
    plain = albumentations.Compose([MaskFace(("hand",), p=1.0)], seed=3)(image=image)
    flip = albumentations.HorizontalFlip(p=1.0)
    targets = {"occlusion_mask": "mask"}
    flipped = albumentations.Compose([MaskFace(("hand",), p=1.0), flip], seed=3, additional_targets=targets)(
        image=image
    )
    assert np.array_equal(flipped["occlusion_mask"], plain["occlusion_mask"][:, ::-1])
    assert np.array_equal(flipped["image"], plain["image"][:, ::-1])


def test_landmarks_from_keypoints_or_key(image: NDArray[np.uint8]) -> None:
    points = np.array([(20, 20), (40, 20), (30, 31), (21, 42), (39, 42)], np.float32)
    by_key = MaskFace(("sunglasses",), p=1.0)(image=image, landmarks=points)["occlusion_mask"]
    keypoints = albumentations.KeypointParams(format="xy", remove_invisible=False)
    by_target = albumentations.Compose([MaskFace(("sunglasses",), p=1.0)], keypoint_params=keypoints)(
        image=image, keypoints=points
    )
    for mask in (by_key, by_target["occlusion_mask"]):
        assert mask[20, 20] == mask[20, 40] == 1 and mask[40:].sum() == 0
    with pytest.raises(ValueError, match="landmarks"):
        MaskFace(p=1.0)(image=image, landmarks=points[:3])


def test_mask_face_bad_input(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="unknown occluder"):
        MaskFace(kinds=("beard",))
    with pytest.raises(ValueError, match="uint8 RGB"):
        MaskFace(p=1.0)(image=image[..., 0])


def test_masking_imports_neither_albumentations_nor_lightning() -> None:
    heavy = "{'albumentations', 'pytorch_lightning', 'torchvision'}"
    code = f"import sys, deocc.masking; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
