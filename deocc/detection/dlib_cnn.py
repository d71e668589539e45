"""dlib's convolutional face detector.

[0] King, "Max-Margin Object Detection", arXiv 1502.00046, 2015.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deocc.detection.dlib_faces import DlibDetector, read_weights
from deocc.detection.weights_file import given_file, packaged_file

_FILE: Final = "mmod_human_face_detector.dat"


class DlibCnnDetector(DlibDetector):
    """Slow on a processor. Its landmarks come from the same 68-point predictor as those of "dlib", with the same terms.

    Args:
        weights: path of an `mmod_human_face_detector.dat`; default the one of face-recognition-models (CC0).

    Raises:
        ImportError: dlib or face-recognition-models is not installed.
        FileNotFoundError: no such file.
        ValueError: the file is damaged.
    """

    name = "dlib_cnn"

    def __init__(self, weights: str | None = None) -> None:
        path = packaged_file(_FILE) if weights is None else given_file(weights)
        super().__init__()
        self._detector = read_weights(self._dlib.cnn_face_detection_model_v1, path)

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        return [(found.rect, found.confidence) for found in self._detector(image, upsamplings)]
