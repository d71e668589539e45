"""The comparison of completions tells true, blurred and wrong ones apart."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.completions import detail, measure
from tests.modules.training import faces


class Recogniser(nn.Module):
    """Embeds a face by the means of its quarters."""

    embedding_dim = 12

    def forward(self, face: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(face, 2).flatten(1)


def figures(complete: Callable[[Tensor], Tensor]) -> list[float]:
    """PSNR, Frechet distance, similarity, detail and colour of faces that are completed from the clean ones."""
    batch = faces(24)
    truth = {**batch, "masked_face": batch["face"]}
    found = measure(cast(Any, lambda face, mask: complete(face)), [cast(Any, truth)], [cast(Any, Recogniser())])
    return [float(cell) for cell in found]


def test_true_blurred_and_wrong_completions() -> None:
    exact = figures(lambda face: face)
    blurred = figures(lambda face: F.avg_pool2d(face, 5, stride=1, padding=2))
    wrong = figures(lambda face: -face.flip(0))
    assert exact[0] == float("inf") and abs(exact[1]) < 1e-6 and exact[2:] == [1, 1, 0]
    assert exact[0] > blurred[0] > wrong[0] and wrong[2] < blurred[2] <= 1
    assert exact[1] < blurred[1] < wrong[1]
    assert exact[4] < blurred[4] < wrong[4] and figures(lambda face: face + 20 / 255)[4] == 0
    assert blurred[3] < 1 and figures(torch.zeros_like)[3] == 0, "a uniform completion has no detail"


def test_detail_is_counted_inside_the_mask() -> None:
    face, mask = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    face[..., 2, 2] = face[..., 8, 8] = 1  # outside, and at the rim
    assert detail(face, mask) == 0
    face[..., 16, 16] = 1
    assert abs(detail(face, mask) - 3 * ((1 - 1 / 25) ** 2 + 24 / 25**2)) < 1e-5
