"""YuNet, a small convolutional detector with five landmarks, run by OpenCV.

[0] Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research, 2023.
[1] OpenCV's documentation of `FaceDetectorYN`: the columns of its result.
"""

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.detection.detector import Detection, Detector, enlarge, given_file, shrink
from deocc.messages import describe_error

_SIDE: Final = 640  # images are shrunk and padded to this square: some releases accept no other size
_LOWEST_SCORE: Final = 0.6  # OpenCV's default of 0.9 is for bare faces; our choice
_SMALLEST_FACE: Final = 10  # pixels, as stated by the model zoo


class YunetDetector(Detector):
    """YuNet in any release of OpenCV's model zoo since 2023, which states a range of 10 to 300 pixels for faces.

    The weights are a `face_detection_yunet_*.onnx`; no package ships one.
    """

    name = "yunet"

    def __init__(self, weights: str | None = None) -> None:
        if weights is None:
            raise ValueError(
                "face detector 'yunet' needs weights: "
                "give the path of a face_detection_yunet_*.onnx of OpenCV's model zoo"
            )
        path = given_file(weights)
        try:
            self._detector = cv2.FaceDetectorYN.create(str(path), "", (_SIDE, _SIDE), score_threshold=_LOWEST_SCORE)
            self._run(np.zeros((_SIDE, _SIDE, 3), np.uint8))  # OpenCV only notices another network when it runs
        except cv2.error as error:
            raise ValueError(
                f"{path} is not a YuNet that OpenCV {cv2.__version__} can run ({describe_error(error)}): "
                "get another release"
            ) from None

    def smallest_face(self, height: int, width: int) -> int:
        """Return 10 pixels, more in photos that are shrunk."""
        return round(_SMALLEST_FACE * max(1.0, max(height, width) / _SIDE))

    def _find(self, image: NDArray[np.uint8]) -> Iterator[Detection]:
        smaller, factors = shrink(image, _SIDE)
        canvas = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        canvas[: smaller.shape[0], : smaller.shape[1]] = smaller[..., ::-1]  # OpenCV expects BGR
        for face in self._run(canvas):
            corners = np.stack([face[:2], face[:2] + face[2:4]])
            landmarks = enlarge(face[4:14].reshape(5, 2), factors)
            yield Detection(enlarge(corners, factors).reshape(-1), landmarks, float(face[14]))

    def _run(self, canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (F, 15): x, y, width, height, five landmarks from left to right in the image, score [1]."""
        faces: NDArray[np.generic] | None = self._detector.detect(canvas)[1]  # None without faces, despite the stubs
        return np.zeros((0, 15)) if faces is None else np.asarray(faces, dtype=np.float64)
