"""The renderer as an albumentations transform; `deocc.masking` does not import albumentations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from albumentations.core.transforms_interface import BaseTransformInitSchema, ImageOnlyTransform

from deocc.masking.registry import draw_kinds, kind_numbers
from deocc.masking.renderer import render


class MaskFace(ImageOnlyTransform):  # type: ignore[misc]  # albumentations ships no types
    """Render a random occluder on a face.

    Targets: `image`, uint8 (H, W, 3). The transform adds the key `occlusion_mask`, uint8 (H, W), 1 = covered, all 0
    where the transform is not applied. Later spatial transforms move it along if the `Compose` declares
    `additional_targets={"occlusion_mask": "mask"}`.

    The five landmarks (eye, eye, nose, mouth corner, mouth corner, left to right, pixels) are taken from the
    `keypoints` target if it is given, else from the key `landmarks`, (5, 2), else the image must be a square canonical
    crop of `deocc.geometry`. Earlier spatial transforms move `keypoints` and leave `landmarks` as they are.

    Args:
        kinds: names from `deocc.masking.list_kinds()`; None = all.
        p: how often an occluder is put on.

    Raises:
        ValueError: a kind is unknown; on a call: the image is not uint8 RGB, or the landmarks are not five points.
    """

    class InitSchema(BaseTransformInitSchema):  # type: ignore[misc]
        """Validation of the arguments."""

        kinds: Sequence[str] | None

    def __init__(self, kinds: Sequence[str] | None = None, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.kinds = kinds
        kind_numbers(kinds or ())

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """Return the targets; `apply_with_params` transforms them, since one rendering has two results."""
        return {"image": self.apply, "keypoints": self.apply}

    def __call__(self, *args: Any, force_apply: bool = False, **kwargs: Any) -> Any:
        """Transform, and add `occlusion_mask` where the transform is not applied."""
        empty = np.zeros(kwargs["image"].shape[:2], np.uint8) if "image" in kwargs else None
        return {"occlusion_mask": empty, **super().__call__(*args, force_apply=force_apply, **kwargs)}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Return the seed, from the transform's own generator, and the landmarks."""
        points = data.get("keypoints")
        points = data.get("landmarks") if points is None else np.asarray(points)[:, :2]
        return {
            "seed": self.py_random.getrandbits(63),
            "landmarks": None if points is None else np.asarray(points, np.float32),
        }

    def apply_with_params(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Render once and return image, mask and all other data."""
        image, landmarks, seeds = kwargs["image"], params["landmarks"], torch.tensor([params["seed"]])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}")
        face = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        points = None if landmarks is None else torch.from_numpy(landmarks)
        masked_face, masks = render(face, points, draw_kinds(seeds, self.kinds), seeds)
        mask = masks[0, 0].numpy().astype(np.uint8)
        pixels = ((masked_face[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return {**kwargs, "image": np.where(mask[:, :, None] == 1, pixels, image), "occlusion_mask": mask}
