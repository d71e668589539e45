"""By which template crops are aligned, told by where a detector finds their landmarks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.detection import Detector
from deocc.detection.detector import Detection
from deocc.geometry import TEMPLATES

_CLOSE: Final = 0.2
"""Farther from every template, in eye distances, crops are taken for not aligned. OURS: dlib's detector puts ORL's crops of any template
0.07 from it, and ORL's uncropped images 0.37 from the nearest."""

_CLEARLY: Final = 0.08
"""How much nearer, in eye distances, another template must be than the named one. OURS: on ORL's crops 0.12 and more part any two but
facenet's and canonical ones, which 0.03 part, too little to tell."""

_MARGIN: Final = 0.5  # of the side, added around a crop: detectors look for whole heads


class Fit(NamedTuple):
    """How crops lie to the templates."""

    distance: dict[str, float]
    """By template, the median over the crops of the mean distance of the five points, in eye distances."""
    found: int
    """Crops in which a face was found."""

    @property
    def nearest(self) -> str:
        """The template with the smallest distance."""
        return min(self.distance, key=lambda name: self.distance[name])

    @property
    def is_aligned(self) -> bool:
        """Whether they are aligned to any template at all."""
        return self.distance[self.nearest] < _CLOSE

    def contradicts(self, name: str) -> bool:
        """Whether they are clearly not aligned to the template of this name."""
        return self.distance[name] > self.distance[self.nearest] + _CLEARLY


def measure(crops: Iterable[NDArray[np.uint8]], detector: Detector) -> Fit | None:
    """How crops lie to the templates; None where no face is found in any.

    Args:
        crops: (H, W, 3) RGB each; a template is scaled to the width.
        detector: finds their landmarks.
    """
    rows = [row for crop in crops if (row := _distances(crop, detector)) is not None]
    if not rows:
        return None
    return Fit(dict(zip(TEMPLATES, np.median(rows, axis=0).tolist(), strict=True)), len(rows))


def spread(paths: Sequence[Path], number: int) -> list[Path]:
    """So many of the paths, evenly from the first to the last."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(number, len(paths))).round().astype(int))
    return [paths[place] for place in places.tolist()]


def _distances(crop: NDArray[np.uint8], detector: Detector) -> list[float] | None:
    margin = round(_MARGIN * crop.shape[1])
    faces = detector.detect(np.pad(crop, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    if not faces:
        return None
    points = max(faces, key=_width).landmarks - margin
    eyes = float(np.linalg.norm(points[1] - points[0]))
    templates = (TEMPLATES[name].tensor(crop.shape[1]).double().numpy() for name in TEMPLATES)
    return [float(np.linalg.norm(points - template, axis=1).mean()) / eyes for template in templates]


def _width(face: Detection) -> float:
    return float(face.box[2] - face.box[0])
