"""Detected landmarks: looked for once, kept through interruptions, and never a reason to lose an image."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.data import landmarks as landmark_cache
from deocc.data.images import read_image
from deocc.data.landmarks import find_landmarks
from deocc.detection import Detection
from deocc.geometry import TEMPLATES
from tests.fake_sets.faces import save_face

_OFFSETS = np.array([[-5.0, -5], [5, -5], [0, 0], [-4, 5], [4, 5]])
_NAMES = [f"{index}.png" for index in range(7)]


class Stub:
    """Finds what an image's first pixels say: (x, y, half a side) of a face in each pixel of the first row until a
    black one.

    Counts what it looks at and stops with an error after `patience` images.
    """

    def __init__(self, patience: int = 1000) -> None:
        self.seen, self.patience = 0, patience

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        if self.seen == self.patience:
            raise KeyboardInterrupt
        self.seen += 1
        faces = [pixel for pixel in image[0].tolist() if any(pixel)]
        return [
            Detection(np.array([x - half, y - half, x + half, y + half]), _points(x, y), 1.0) for x, y, half in faces
        ]


def _points(x: float, y: float) -> NDArray[np.float64]:
    """The landmarks of a face there."""
    return _OFFSETS + np.array([x, y])


def _picture(*faces: tuple[int, int, int], width: int = 100, height: int = 80) -> NDArray[np.uint8]:
    """A picture in which `Stub` finds the given faces."""
    image = np.zeros((height, width, 3), np.uint8)
    image[0, : len(faces)] = np.array(faces).reshape(-1, 3)
    return image


_PICTURES = [_picture((30 + index, 40, 20)) for index in range(len(_NAMES))]
_EXPECTED = np.stack([_points(30 + index, 40) for index in range(len(_NAMES))])
Use = Callable[..., Stub]
Detect = Callable[..., NDArray[np.float64]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the landmarks during a test; does not exist yet."""
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "landmarks"


@pytest.fixture
def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """A function (patience=1000) that puts a new stub in the place of every detector, and returns it."""

    def put(patience: int = 1000) -> Stub:
        stub = Stub(patience)
        monkeypatch.setattr(landmark_cache, "create_detector", lambda name, weights: stub)
        return stub

    return put


@pytest.fixture
def detect(tmp_path: Path) -> Detect:
    """A function (pictures, **options) that writes the pictures, and warns and returns the landmarks as a face set."""

    def run(pictures: list[NDArray[np.uint8]] = _PICTURES, **options: Any) -> NDArray[np.float64]:
        for name, picture in zip(_NAMES, pictures, strict=False):
            path = tmp_path / name
            if not path.is_file() or not np.array_equal(np.asarray(Image.open(path)), picture):
                Image.fromarray(picture).save(path)
        found = find_landmarks(tmp_path, _NAMES[: len(pictures)], **options)
        found.warn()
        return found.filled()

    return run


def test_faces_are_detected_once(use: Use, detect: Detect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = use()
    np.testing.assert_array_equal(detect(), _EXPECTED)
    monkeypatch.setattr(landmark_cache, "create_detector", None)  # neither detector nor images are needed again
    np.testing.assert_array_equal(detect(), _EXPECTED)
    assert stub.seen == len(_NAMES)
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_interrupted_work_continues(use: Use, detect: Detect, folder: Path) -> None:
    use(patience=3)
    with pytest.raises(KeyboardInterrupt):
        detect()
    resumed = use()
    np.testing.assert_array_equal(detect(), _EXPECTED)
    assert resumed.seen == len(_NAMES) - 3
    assert len(list(folder.iterdir())) == 1


def test_killed_work_loses_little(use: Use, detect: Detect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_cache, "_SAVE_EVERY", 2)
    done: list[int] = []

    class Watching(Stub):
        def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
            with np.load(next(folder.glob("*.npz"))) as file:  # what a process would find that begins now
                done.append(int((file["size"] > 0).all(1).sum()))
            return super().detect(image)

    monkeypatch.setattr(landmark_cache, "create_detector", lambda *_: Watching())
    detect()
    assert done == [0, 0, 2, 2, 4, 4, 6]


def test_key_is_files_detector_and_weights(use: Use, detect: Detect, folder: Path, tmp_path: Path) -> None:
    weights = {name: tmp_path / f"{name}.onnx" for name in ("a", "b", "copy of a")}
    for name, path in weights.items():
        path.write_text(name[-1])
    variants: list[dict[str, str]] = [{}, {"detector": "dlib_cnn"}]
    variants += [{"weights": str(weights["a"])}, {"weights": str(weights["b"])}]
    for number, options in enumerate(variants, 1):
        stub = use()
        detect(**options)
        assert (stub.seen, len(list(folder.iterdir()))) == (len(_NAMES), number)
    stub = use()
    detect(weights=str(weights["copy of a"]))  # weights count by their content, not by their path
    assert stub.seen == 0
    for name in (_NAMES[0], "other.png"):
        (tmp_path / name).write_bytes((tmp_path / _NAMES[0]).read_bytes() + b"\0")
    find_landmarks(tmp_path, _NAMES)
    assert stub.seen == len(_NAMES)
    find_landmarks(tmp_path, ["other.png", *_NAMES[1:]])
    assert stub.seen == 2 * len(_NAMES)
    os.utime(tmp_path / _NAMES[3], (1, 1))  # perhaps another picture of as many bytes, as bitmaps are
    find_landmarks(tmp_path, _NAMES)
    assert stub.seen == 3 * len(_NAMES)


def test_missing_weights_are_named(detect: Detect, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detector weights at .*absent\.onnx"):
        detect(weights=str(tmp_path / "absent.onnx"))


@pytest.mark.parametrize(
    ("faces", "chosen"),
    [
        ([(50, 40, 10), (20, 15, 10)], 0),  # of equal size the central one
        ([(50, 40, 5), (45, 40, 20)], 1),  # a speck in the very middle is not the person
        ([(90, 70, 14), (48, 42, 12)], 1),  # a bystander in the corner, somewhat larger
    ],
)
def test_large_face_near_the_middle_counts(
    use: Use, detect: Detect, faces: list[tuple[int, int, int]], chosen: int
) -> None:
    use()
    found = detect([_picture(*faces), _picture(*faces[::-1])])
    np.testing.assert_array_equal(found, [_points(*faces[chosen][:2])] * 2)


def test_missing_face_gets_mean_of_images_of_its_size(use: Use, detect: Detect) -> None:
    use()
    pictures = [_picture((30, 40, 9)), _picture(), _picture((50, 44, 9)), _picture((9, 9, 9), width=60)]
    for _ in range(2):  # told again when read from the file
        with pytest.warns(
            UserWarning, match=r"face found in 1 of 4 images \(1\.png\): a mean face's .* stand in"
        ) as told:
            found = detect(pictures)
        assert len(told) == 1
        np.testing.assert_allclose(found[1], _points(40, 42))
        np.testing.assert_array_equal(found[[0, 2, 3]], np.stack([_points(30, 40), _points(50, 44), _points(9, 9)]))


@pytest.mark.parametrize(("width", "height", "shift"), [(70, 105, (0.0, 17.5)), (105, 70, (17.5, 0.0))])
def test_without_a_face_of_its_size_it_gets_the_template(
    use: Use, detect: Detect, width: int, height: int, shift: tuple[float, float]
) -> None:
    use()
    with pytest.warns(UserWarning, match=r"in 4 of 5 images \(0\.png, 1\.png, 2\.png, \.\.\.\)"):
        found = detect([_picture(width=width, height=height)] * 4 + [_picture((30, 40, 9))])
    np.testing.assert_allclose(found[0], TEMPLATES["canonical"].tensor(70).numpy() + np.array(shift), atol=1e-4)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "other arrays", "other shapes", "pickle"])
def test_damaged_file_is_replaced(use: Use, detect: Detect, folder: Path, damage: str) -> None:
    use()
    detect()
    path = next(folder.iterdir())
    _damage(path, damage)
    again = use()
    with pytest.warns(UserWarning, match=r"cannot read the landmarks in .*\.npz \(.*\): faces are detected again"):
        np.testing.assert_array_equal(detect(), _EXPECTED)
    np.testing.assert_array_equal(detect(), _EXPECTED)
    assert again.seen == len(_NAMES)


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    arrays: dict[str, Any] = {
        "other arrays": {"points": np.zeros(3)},
        "other shapes": {"landmarks": np.zeros((2, 5, 2)), "size": np.ones((2, 2))},
        "pickle": {"landmarks": np.array([{"a": 1}], dtype=object), "size": np.ones((7, 2))},
    }
    if how in arrays:
        np.savez(path, allow_pickle=True, **arrays[how])
    else:
        method = content.index(b"PK\x01\x02") + 10  # how the zip's first entry says it is compressed
        flipped = content[:method] + b"\xff" + content[method + 1 :]
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "text": b"landmarks", "flipped": flipped}[how]
        )


def test_unusable_folder_is_one_warning(
    use: Use, detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(landmark_cache, "_SAVE_EVERY", 1)
    stub = use()
    with pytest.warns(UserWarning, match=r"cannot keep landmarks in .*: set DEOCC_CACHE to a folder that can") as told:
        np.testing.assert_array_equal(detect(), _EXPECTED)
    assert len(told) == 1
    assert stub.seen == len(_NAMES)


def test_failed_write_leaves_the_old_file(
    use: Use, detect: Detect, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(patience=3)
    with pytest.raises(KeyboardInterrupt):
        detect()
    before = next(folder.iterdir()).read_bytes()

    def full(file: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    use()
    with pytest.warns(UserWarning, match="No space left on device"):
        np.testing.assert_array_equal(detect(), _EXPECTED)
    assert [path.read_bytes() for path in folder.iterdir()] == [before]


def test_unreadable_image_is_an_error_or_skipped(use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = use()
    Image.fromarray(_PICTURES[0]).save(tmp_path / "a.png")
    (tmp_path / "b.raw").write_bytes(b"planes")
    with pytest.raises(ValueError, match=r"cannot read .*b\.raw"):
        find_landmarks(tmp_path, ["a.png", "b.raw"])
    with pytest.raises(
        ValueError, match=r"1 of 2 images cannot be read \(b\.raw; the first: .*, more than 1%: replace"
    ):
        find_landmarks(tmp_path, ["a.png", "b.raw"], skip_unreadable=True)
    monkeypatch.setattr(landmark_cache, "MOST", 0.5)
    with pytest.warns(
        UserWarning, match=r"1 of 2 images cannot be read \(b\.raw; .*: they are treated as images"
    ) as told:
        found = find_landmarks(tmp_path, ["a.png", "b.raw"], skip_unreadable=True)
        found.warn()  # not of a missing face too
    assert len(told) == 1 and np.isfinite(found.filled()).all()
    assert found.found.tolist() == [True, False] and found.size.tolist() == [[100, 80], [0, 0]]
    Image.fromarray(_PICTURES[1]).save(tmp_path / "b.png")
    found = find_landmarks(tmp_path, ["a.png", "b.raw"], read=lambda _: read_image(tmp_path / "b.png"))
    assert found.found.all() and stub.seen == 2, "what could not be read is tried again"


def test_real_detector_finds_real_faces(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    truths = [save_face(tmp_path / _NAMES[person], person, 0, 120, 140) for person in range(3)]
    for points, truth in zip(find_landmarks(tmp_path, _NAMES[:3]).filled(), truths, strict=True):
        assert np.linalg.norm(points - truth, axis=1).max() < 0.2 * np.linalg.norm(truth[1] - truth[0])
