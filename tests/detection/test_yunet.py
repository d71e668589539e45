"""YuNet through OpenCV's decoder, on a tiny network with YuNet's inputs and outputs; no package ships the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.detection import create_detector

onnx = pytest.importorskip("onnx")
_SIDE = 640
_KEYPOINTS = np.arange(10, dtype=np.float32) / 4


def _write_network(path: Path, missing: str = "") -> Path:
    """Write a network that reports each cell of 8 pixels as a face of 16 x 24, its score the red channel."""
    nodes: list[Any] = []
    constants: list[Any] = []
    outputs: list[Any] = []

    def constant(name: str, value: Any, kind: type = np.float32) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **options: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [name], **options))
        return name

    bounds = [
        constant(name, [value], np.int64) for name, value in (("start", 2), ("stop", 3), ("axis", 1))
    ]  # channel 2 of blue, green, red
    red = node("Mul", [node("Slice", ["input", *bounds], "slice"), constant("scale", 1 / 255)], "red")
    for stride in (8, 16, 32):
        cells = (_SIDE // stride) ** 2
        pooled = node("AveragePool", [red], f"pooled{stride}", kernel_shape=[stride, stride], strides=[stride, stride])
        cls = node("Reshape", [pooled, constant(f"shape{stride}", [1, cells, 1], np.int64)], f"cls_{stride}")
        node("Mul", [cls, constant(f"only{stride}", float(stride == 8))], f"obj_{stride}")
        nothing = node("Mul", [cls, constant(f"zero{stride}", 0)], f"nothing{stride}")
        for name, values in (("bbox", np.array([0.5, 0.5, np.log(2), np.log(3)])), ("kps", _KEYPOINTS)):
            node("Add", [nothing, constant(f"{name}{stride}", values[None, None])], f"{name}_{stride}")
        widths = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
        outputs += [
            onnx.helper.make_tensor_value_info(f"{name}_{stride}", onnx.TensorProto.FLOAT, [1, cells, width])
            for name, width in widths.items()
            if name != missing
        ]
    image = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])
    graph = onnx.helper.make_graph(nodes, "yunet", [image], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(_write_network(tmp_path_factory.mktemp("yunet") / "yunet.onnx"))


def _image(*cells: tuple[int, int, tuple[int, int, int]], width: int = 300, height: int = 100) -> NDArray[np.uint8]:
    """Return a black image with coloured cells of 8 pixels at (column, row)."""
    image = np.zeros((height, width, 3), np.uint8)
    for column, row, colour in cells:
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = colour
    return image


def test_yunet_reads_columns_and_rgb(weights: str) -> None:
    faces = create_detector("yunet", weights).detect(_image((5, 2, (255, 0, 0)), (20, 6, (0, 0, 255))))
    assert len(faces) == 1  # blue has no red channel
    np.testing.assert_allclose(faces[0].box, [44 - 8, 20 - 12, 44 + 8, 20 + 12], atol=1e-4)
    np.testing.assert_allclose(faces[0].landmarks, (_KEYPOINTS * 8).reshape(5, 2) + np.array([40, 16]), atol=1e-4)
    assert faces[0].score == pytest.approx(1, abs=1e-4)


def test_yunet_ranks_faces_above_the_lowest_score(weights: str) -> None:
    image = _image((5, 2, (180, 0, 0)), (20, 6, (255, 0, 0)), (30, 9, (100, 0, 0)))
    faces = create_detector("yunet", weights).detect(image)
    assert [round(face.score, 2) for face in faces] == [1.0, round(180 / 255, 2)]
    assert create_detector("yunet", weights).detect(_image()) == []


def test_yunet_maps_back_to_large_photos(weights: str) -> None:
    small = _image((5, 2, (255, 0, 0)), width=640, height=320)
    large = np.repeat(np.repeat(small, 3, 0), 3, 1)
    detector = create_detector("yunet", weights)
    expected, found = detector.detect(small)[0], detector.detect(large)[0]
    np.testing.assert_allclose(found.landmarks, (expected.landmarks + 0.5) * 3 - 0.5, atol=1e-3)
    np.testing.assert_allclose(found.box, (expected.box + 0.5) * 3 - 0.5, atol=1e-3)


def test_yunet_needs_weights() -> None:
    with pytest.raises(ValueError, match=r"'yunet' needs weights: give the path of a face_detection_yunet_\*\.onnx"):
        create_detector("yunet")


def test_yunet_refuses_other_networks(tmp_path: Path) -> None:
    path = _write_network(tmp_path / "other.onnx", missing="kps")
    with pytest.raises(ValueError, match=r"other\.onnx is not a YuNet that OpenCV .* can run") as error:
        create_detector("yunet", str(path))
    assert "\n" not in str(error.value)
