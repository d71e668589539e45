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

_SIDE: Final = 640
"""Images are shrunk to this and laid on a black square of it: the only size that the releases of fixed input size accept."""


class YunetDetector(Detector):
    """YuNet from any file of OpenCV's model zoo since 2023; the zoo gives faces of 10 to 300 pixels as what it finds.

    Args:
        weights: path of a `face_detection_yunet_*.onnx`; no package ships one.
        threshold: the lowest score of a face, in [0, 1]. OURS: OpenCV's own 0.9 is for bare faces.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file is given, or it is not a YuNet that this OpenCV can read.
    """

    name = "yunet"

    def __init__(self, weights: str | None = None, threshold: float = 0.6) -> None:
        if weights is None:
            raise ValueError(
                "face detector 'yunet' needs weights: give the path of a face_detection_yunet_*.onnx of OpenCV's model zoo"
            )
        self._path = given_file(weights)
        try:
            self._detector = cv2.FaceDetectorYN.create(str(self._path), "", (_SIDE, _SIDE), score_threshold=threshold)
            self._faces(np.zeros((_SIDE, _SIDE, 3), np.uint8))  # another network is noticed only when it runs
        except cv2.error as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{self._path} is not a YuNet that OpenCV {cv2.__version__} can run ({reason}): get another release"
            ) from None

    def _find(self, image: NDArray[np.uint8]) -> Iterator[Detection]:
        smaller, factors = shrink(image, _SIDE)
        canvas = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        canvas[: smaller.shape[0], : smaller.shape[1]] = smaller[..., ::-1]  # OpenCV's order of channels
        for face in self._faces(canvas):
            corners = np.stack([face[:2], face[:2] + face[2:4]])
            yield Detection(
                enlarge(corners, factors).reshape(-1), enlarge(face[4:14].reshape(5, 2), factors), float(face[14])
            )

    def _faces(self, canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(F, 15): x, y, width, height, five landmarks from the image's left to its right, score [1]."""
        # OpenCV gives None where no face is, though its type stubs do not say so.
        faces: NDArray[np.generic] | None = self._detector.detect(canvas)[1]
        return np.zeros((0, 15)) if faces is None else np.asarray(faces, dtype=np.float64)
