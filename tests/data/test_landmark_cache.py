"""Detected landmarks: looked for once, kept through interruptions, and never a reason to lose an image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.data import landmarks as landmark_cache
from deocc.data.landmarks import detected_landmarks, find_file_landmarks
from deocc.detection import Detection
from deocc.geometry import TEMPLATES
from tests.fake_sets.faces import orl_face

_OFFSETS = np.array([[-5.0, -5], [5, -5], [0, 0], [-4, 5], [4, 5]])
_NAMES = [f"p/{index}" for index in range(7)]


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
        return [_face(*pixel) for pixel in image[0].tolist() if any(pixel)]


def _points(x: float, y: float) -> NDArray[np.float64]:
    """The landmarks of a face there."""
    return _OFFSETS + np.array([x, y])


def _face(x: float, y: float, half: float) -> Detection:
    return Detection(np.array([x - half, y - half, x + half, y + half]), _points(x, y), 1.0)


def _picture(*faces: tuple[int, int, int], width: int = 100, height: int = 80) -> NDArray[np.uint8]:
    """A picture in which `Stub` finds the given faces."""
    image = np.zeros((height, width, 3), np.uint8)
    image[0, : len(faces)] = np.array(faces).reshape(-1, 3)
    return image


_PICTURES = [_picture((30 + index, 40, 20)) for index in range(len(_NAMES))]
_EXPECTED = np.stack([_points(30 + index, 40) for index in range(len(_NAMES))])
Use = Callable[..., Stub]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are kept during a test; does not exist yet."""
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


def _detect(pictures: list[NDArray[np.uint8]] = _PICTURES, key: str = "set", **options: str) -> NDArray[np.float64]:
    return detected_landmarks(_NAMES[: len(pictures)], pictures.__getitem__, key, **options)


def _never(index: int) -> NDArray[np.uint8]:
    raise AssertionError("an image was read though the file has its landmarks")


def test_faces_are_detected_once(use: Use, folder: Path) -> None:
    first = use()
    np.testing.assert_array_equal(_detect(), _EXPECTED)
    second = use()
    np.testing.assert_array_equal(detected_landmarks(_NAMES, _never, "set"), _EXPECTED)
    assert (first.seen, second.seen) == (len(_NAMES), 0)
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_the_file_stands_in_for_the_detector(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use()
    _detect()
    monkeypatch.setattr(landmark_cache, "create_detector", None)
    np.testing.assert_array_equal(_detect(), _EXPECTED)


def test_interrupted_work_goes_on_where_it_stopped(use: Use, folder: Path) -> None:
    use(patience=3)
    with pytest.raises(KeyboardInterrupt):
        _detect()
    resumed = use()
    np.testing.assert_array_equal(_detect(), _EXPECTED)
    assert resumed.seen == len(_NAMES) - 3
    assert len(list(folder.iterdir())) == 1


def test_work_that_is_killed_loses_little(use: Use, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_cache, "_SAVE_EVERY", 2)
    done: list[int] = []

    def image(index: int) -> NDArray[np.uint8]:
        with np.load(next(folder.glob("*.npz"))) as file:  # what a process would find that begins now
            done.append(int((file["size"] > 0).all(1).sum()))
        return _PICTURES[index]

    use()
    detected_landmarks(_NAMES, image, "set")
    assert done == [0, 0, 2, 2, 4, 4, 6]


def test_another_set_name_detector_or_weights_has_its_own_file(use: Use, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        file.write_text(file.name)
    variants: list[dict[str, str]] = [
        {},
        {"key": "other"},
        {"detector": "dlib_cnn"},
        *({"weights": str(file)} for file in files),
    ]
    for number, options in enumerate(variants, 1):
        stub = use()
        _detect(**options)
        assert stub.seen == len(_NAMES)
        assert len(list(folder.iterdir())) == number
    stub = use()
    detected_landmarks([*_NAMES[:-1], "q"], _PICTURES.__getitem__, "set")
    assert stub.seen == len(_NAMES)


def test_weights_count_by_what_they_hold_not_by_their_path(use: Use, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_text("the same")
    use()
    _detect(weights=str(tmp_path / "a.onnx"))
    again = use()
    _detect(weights=str(tmp_path / "b.onnx"))
    assert again.seen == 0


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detector weights at .*absent\.onnx"):
        _detect(weights=str(tmp_path / "absent.onnx"))


@pytest.mark.parametrize(
    ("faces", "chosen"),
    [
        ([(50, 40, 10), (20, 15, 10)], 0),  # of equal size the central one
        ([(50, 40, 5), (45, 40, 20)], 1),  # a speck in the very middle is not the person
        ([(90, 70, 14), (48, 42, 12)], 1),  # a bystander in the corner, somewhat larger
    ],
)
def test_of_several_faces_the_large_one_near_the_middle_counts(
    use: Use, faces: list[tuple[int, int, int]], chosen: int
) -> None:
    use()
    for order in (faces, faces[::-1]):
        found = _detect([_picture(*order)], key=str(order))
        np.testing.assert_array_equal(found[0], _points(*faces[chosen][:2]))


def test_a_face_that_is_not_found_gets_the_mean_place_of_images_of_its_size(use: Use) -> None:
    use()
    pictures = [_picture((30, 40, 9)), _picture(), _picture((50, 44, 9)), _picture((9, 9, 9), width=60)]
    for _ in range(2):  # told again when read from the file
        with pytest.warns(
            UserWarning, match=r"no face found in 1 of 4 images \(p/1\): a mean face's landmarks stand in"
        ) as told:
            found = _detect(pictures)
        assert len(told) == 1
        np.testing.assert_allclose(found[1], _points(40, 42))
        np.testing.assert_array_equal(found[[0, 2, 3]], np.stack([_points(30, 40), _points(50, 44), _points(9, 9)]))


@pytest.mark.parametrize(("width", "height", "shift"), [(70, 105, (0.0, 17.5)), (105, 70, (17.5, 0.0))])
def test_without_a_found_one_of_its_size_it_gets_the_template_in_the_middle(
    use: Use, width: int, height: int, shift: tuple[float, float]
) -> None:
    use()
    with pytest.warns(UserWarning, match=r"in 1 of 2 images \(p/0\)"):
        found = _detect([_picture(width=width, height=height), _picture((30, 40, 9))])
    np.testing.assert_allclose(found[0], TEMPLATES["canonical"].tensor(70).numpy() + np.array(shift), atol=1e-4)


def test_the_warning_names_three_images_of_many(use: Use) -> None:
    use()
    with pytest.warns(UserWarning, match=r"in 5 of 7 images \(p/0, p/1, p/2, \.\.\.\)"):
        assert np.isfinite(_detect([_picture()] * 5 + _PICTURES[:2])).all()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "other arrays", "other shapes", "pickle"])
def test_a_damaged_file_is_made_again_with_a_word(use: Use, folder: Path, damage: str) -> None:
    use()
    _detect()
    path = next(folder.iterdir())
    _damage(path, damage)
    again = use()
    with pytest.warns(UserWarning, match=r"cannot read the landmarks in .*\.npz \(.*\): faces are detected again"):
        np.testing.assert_array_equal(_detect(), _EXPECTED)
    assert again.seen == len(_NAMES)
    np.testing.assert_array_equal(detected_landmarks(_NAMES, _never, "set"), _EXPECTED)


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    arrays = {
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


def test_without_a_usable_folder_the_work_goes_on_with_one_warning(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(landmark_cache, "_SAVE_EVERY", 1)
    stub = use()
    with pytest.warns(
        UserWarning, match=r"cannot keep landmarks in .*: set DEOCC_CACHE to a folder that can be written to"
    ) as told:
        np.testing.assert_array_equal(_detect(), _EXPECTED)
    assert len(told) == 1
    assert stub.seen == len(_NAMES)


def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(
    use: Use, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(patience=3)
    with pytest.raises(KeyboardInterrupt):
        _detect()
    before = next(folder.iterdir()).read_bytes()

    def full(file: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    use()
    with pytest.warns(UserWarning, match="No space left on device"):
        np.testing.assert_array_equal(_detect(), _EXPECTED)
    assert [path.read_bytes() for path in folder.iterdir()] == [before]


def test_the_default_folder_lies_in_the_home_folder(use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEOCC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    use()
    _detect()
    assert len(list((tmp_path / "home" / ".cache" / "deocc" / "landmarks").iterdir())) == 1


def test_files_are_looked_at_once_until_one_changes(use: Use, tmp_path: Path) -> None:
    for name, picture in zip("ab", (_picture((30, 40, 9)), _picture()), strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    names = ["a.png", "b.png"]
    stub = use()
    found = [find_file_landmarks(tmp_path, names) for _ in range(2)]
    assert stub.seen == 2
    for each in found:
        np.testing.assert_array_equal(each.landmarks[0], _points(30, 40))
        assert each.found.tolist() == [True, False] and each.lost == ["b.png"]
        assert each.size.tolist() == [[100, 80]] * 2
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"\0")
    find_file_landmarks(tmp_path, names)
    assert stub.seen == 4


def test_an_empty_set_has_no_landmarks(folder: Path) -> None:
    assert detected_landmarks([], _never, "set").shape == (0, 5, 2)


def test_real_faces_are_found_by_the_real_detector(folder: Path) -> None:
    pytest.importorskip("dlib")
    drawn = [orl_face(person, 0, 120, 140) for person in range(3)]
    found = detected_landmarks(["a", "b", "c"], lambda index: drawn[index][0], "set")
    for points, (_, truth) in zip(found, drawn, strict=True):
        assert np.linalg.norm(points - truth, axis=1).max() < 0.2 * np.linalg.norm(truth[1] - truth[0])
