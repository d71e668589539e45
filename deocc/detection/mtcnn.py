"""MTCNN: a cascade of three small convolutional networks that find faces and five landmarks.

[0] Zhang, Zhang, Li and Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks",
    IEEE Signal Processing Letters 23(10), 2016.

The packaged weights come from facenet-pytorch 2.6.0 (MIT, see `mtcnn_licence.txt`), converted by
`bench/mtcnn_weights.py`. They were trained on WIDER FACE and CelebA [0]; `bench/mtcnn_training.py` trained them
further, for masked faces. Torch is imported when a detector is created, not with this module.
Thresholds and margins that differ from the authors' code are our choice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.detection.detector import Detection, Detector, given_file
from deocc.messages import describe_error

if TYPE_CHECKING:
    from torch import Tensor

# Boxes are (N, 4) x0, y0, x1, y1 of pixel edges: in this module the top-left pixel spans 0 to 1.
Floats = NDArray[np.float64]

WEIGHTS_FILE: Final = Path(__file__).with_name("mtcnn.safetensors")

_STRIDE: Final = 2  # of the proposal network in pixels [0]
_SHRINK: Final = 0.709  # ratio of neighbouring pyramid levels, half the area; value of the authors' code
_SMALLEST_FACE: Final = 20  # smallest side of a face in pixels ...
_SMALLEST_SHARE: Final = 0.01  # ... or as a share of the photo's longest side, if that is more
_MARGIN: Final = 4  # black pixels around each pyramid level, so that faces cut by the border are proposed
_PROPOSAL_SCORE, _REFINEMENT_SCORE = 0.5, 0.3  # the authors' 0.6 and 0.7 reject many masked faces
_OUTPUT_SCORE, _SURE_SCORE = 0.7, 0.95  # lose about 0.2 and 1.2 % of masked faces (`python -m bench.mtcnn_scores`)
_BATCH: Final = 512  # crops per batch, which bounds memory on photos with many candidates
SIDES: Final = {"proposal": 12, "refinement": 24, "output": 48}  # input sides of the networks in pixels [0]

_POOLS: Final[dict[str, tuple[int | None, ...]]] = {
    "proposal": (2, None, None),
    "refinement": (3, 3, None, None),
    "output": (3, 3, 2, None, None),
}
"""Kernel of the max pooling (stride 2) after each layer of a network; None for no pooling."""


class MtcnnDetector(Detector):
    """Detector of faces from 20 pixels or 1 % of the photo's longest side, also of turned or partly covered ones.

    The score is the third network's probability of a face. Landmarks come from a second pass of that network over the
    box it found and over the mirror image, averaged; this is not in the paper, and halves their variation.

    Args:
        weights: a safetensors file in the layout of `bench/mtcnn_weights.py`; None for the packaged one.

    Attributes:
        weights: of the three networks in float32, named `NETWORK.LAYER.PART`.
    """

    name = "mtcnn"
    upright_score = 0.997  # at 0.99, 9 of 200 LFW photos upside down were taken as upright (`bench.detectors --turned`)
    _sure_score = _SURE_SCORE

    def __init__(self, weights: str | None = None) -> None:
        self.weights = read_weights(WEIGHTS_FILE if weights is None else given_file(weights))

    def smallest_face(self, height: int, width: int) -> int:
        """Return 20 pixels or 1 % of the photo's longest side."""
        return max(_SMALLEST_FACE, round(_SMALLEST_SHARE * max(height, width)))

    def _find(self, image: NDArray[np.uint8]) -> Iterator[Detection]:
        return self.find_all(image, _OUTPUT_SCORE)

    def find_all(self, image: NDArray[np.uint8], least: float) -> Iterator[Detection]:
        """Find the faces of an image (H, W, 3) with scores of at least `least`, in any order."""
        boxes, scores = self._classify(image, self.refine(image, self.propose(image)), "output", least)
        for index in _suppress(boxes, scores, 0.7, of_smaller=True):
            square = squares_of(boxes[index : index + 1])[0]
            crop = cut_square(image, square, SIDES["output"])
            output = _run(self.weights, "output", np.stack([crop, crop[:, ::-1]]))
            points, mirrored = output[:, 5:].reshape(2, 2, 5).transpose(0, 2, 1)
            mirrored = np.array([1, 0]) + mirrored[[1, 0, 2, 4, 3]] * np.array([-1, 1])
            landmarks = square[:2] + (points + mirrored) / 2 * (square[2:] - square[:2])
            yield Detection(boxes[index] - 0.5, landmarks - 0.5, float(scores[index]))

    def propose(self, image: NDArray[np.uint8]) -> Floats:
        """Stage 1: return boxes (N, 4) of all sizes by the proposal network on an image pyramid."""
        (height, width), cell = image.shape[:2], SIDES["proposal"]
        scale = cell / self.smallest_face(height, width)
        candidates, scores = [np.zeros((0, 4))], [np.zeros(0)]
        while min(height, width) * scale + 2 * _MARGIN >= cell:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            level = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            level = cv2.copyMakeBorder(level, _MARGIN, _MARGIN, _MARGIN, _MARGIN, cv2.BORDER_CONSTANT)
            output = _run(self.weights, "proposal", np.asarray(level[None], np.uint8))[0]
            y, x = np.nonzero(output[0] >= _PROPOSAL_SCORE)
            corners = np.stack([x, y, x, y], 1) * _STRIDE + np.array([0, 0, cell, cell]) - _MARGIN
            boxes, score = corners * np.tile([width / size[0], height / size[1]], 2), output[0, y, x]
            kept = _suppress(boxes, score, 0.5)
            candidates.append(_adjust(boxes[kept], output[1:5, y, x].T[kept]))
            scores.append(score[kept])
            scale *= _SHRINK
        boxes = np.concatenate(candidates)
        return boxes[_suppress(boxes, np.concatenate(scores), 0.7)]

    def refine(self, image: NDArray[np.uint8], candidates: Floats) -> Floats:
        """Stage 2: return the candidates (N, 4) that may hold a face, corrected."""
        boxes, scores = self._classify(image, candidates, "refinement", _REFINEMENT_SCORE)
        return boxes[_suppress(boxes, scores, 0.7)]

    def _classify(self, image: NDArray[np.uint8], boxes: Floats, network: str, least: float) -> tuple[Floats, Floats]:
        """Stages 2 and 3: return corrected boxes (N, 4) and scores (N,) of the candidates that reach `least`."""
        if len(boxes) == 0:
            return np.zeros((0, 4)), np.zeros(0)
        squares = squares_of(boxes)
        crops = np.stack([cut_square(image, square, SIDES[network]) for square in squares])
        starts = range(0, len(crops), _BATCH)
        output = np.concatenate([_run(self.weights, network, crops[i : i + _BATCH]) for i in starts])
        passed = output[:, 0] >= least
        return _adjust(squares[passed].astype(np.float64), output[passed, 1:5]), output[passed, 0]


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read the weights of the three networks in float32, named `NETWORK.LAYER.PART`, and try them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        for network, side in SIDES.items():
            _run(weights, network, np.zeros((1, side, side, 3), np.uint8))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({describe_error(error)}): get it again or give another file"
        ) from None
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold the weights of MTCNN ({describe_error(error)}): "
            "convert them by bench/mtcnn_weights.py"
        ) from None
    return weights


def _run(weights: "dict[str, Tensor]", network: str, images: NDArray[np.uint8]) -> Floats:
    """Run a network of `apply_network` on (N, H, W, 3) RGB images."""
    import torch

    with torch.inference_mode():
        return apply_network(weights, network, torch.from_numpy(images).permute(0, 3, 1, 2).float()).double().numpy()


def apply_network(weights: "dict[str, Tensor]", network: str, images: "Tensor") -> "Tensor":
    """Apply the network "proposal", "refinement" or "output" to images (N, 3, H, W) in [0, 255].

    Returns:
        (N, 5 or 15, ...): probability of a face; offsets of the corners x0, y0, x1, y1 in sides of the input; from
        "output" also x of the five landmarks, then y, in sides of the input. "proposal" returns a map with one position
        per window of 12 pixels.
    """
    import torch
    import torch.nn.functional as F

    x = (images - 127.5) / 128
    for number, pool in enumerate(_POOLS[network], 1):
        weight, bias, slope = (weights[f"{network}.{number}.{part}"] for part in ("weight", "bias", "slope"))
        x = F.conv2d(x, weight, bias) if weight.ndim == 4 else F.linear(x.flatten(1), weight, bias)
        x = F.prelu(x, slope)
        x = x if pool is None else F.max_pool2d(x, pool, stride=2, ceil_mode=True)
    weight, bias = (weights[f"{network}.head.{part}"] for part in ("weight", "bias"))
    x = F.conv2d(x, weight, bias) if weight.ndim == 4 else F.linear(x, weight, bias)
    return torch.cat([x[:, :1].sigmoid(), x[:, 1:]], 1)


def _adjust(boxes: Floats, offsets: Floats) -> Floats:
    """Move the corners of boxes by offsets (N, 4), given in widths and heights of the box."""
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def squares_of(boxes: Floats) -> NDArray[np.int64]:
    """Return squares (N, 4) in whole pixels with the centres and the longer sides of boxes."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True).round().clip(1)
    corners = ((boxes[:, :2] + boxes[:, 2:] - sides) / 2).round()
    return np.concatenate([corners, corners + sides], 1).astype(np.int64)


def cut_square(image: NDArray[np.uint8], square: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Cut out a square (4,), resized to (side, side, 3); black beyond the border of the image."""
    x0, y0, x1, y1 = (int(edge) for edge in square)
    left, top = max(x0, 0), max(y0, 0)
    inside = image[top : max(y1, 0), left : max(x1, 0)]
    if inside.shape[:2] != (y1 - y0, x1 - x0):
        padded = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        padded[top - y0 :, left - x0 :][: inside.shape[0], : inside.shape[1]] = inside
        inside = padded
    return np.asarray(cv2.resize(inside, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _suppress(boxes: Floats, scores: Floats, largest_overlap: float, of_smaller: bool = False) -> list[int]:
    """Greedy non-maximum suppression of boxes (N, 4) with scores (N,): return the remaining indices, best first.

    Two boxes whose intersection is more than `largest_overlap` of their union, or of the smaller area, are one face.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[order, :2], boxes[best, :2]), np.minimum(boxes[order, 2:], boxes[best, 2:])
        shared = np.prod((high - low).clip(0), axis=1)
        whole = np.minimum(areas[order], areas[best]) if of_smaller else areas[order] + areas[best] - shared
        order = order[shared <= largest_overlap * whole]
    return kept
