"""Pair lists of any form: columns, labels, folds and people, paths that stay inside, malformed lines by number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold

from deocc.data import pairs as pair_list
from deocc.data.landmarks import FoundLandmarks
from deocc.data.pairs import PairListFaces, contiguous_folds
from deocc.evaluation.protocol import ListedPairs
from deocc.geometry import TEMPLATES
from tests.fake_sets.pair_list import write_pair_list


def _faces(path: Path) -> PairListFaces:
    return PairListFaces(str(path.parent), str(path), aligned="arcface")


def _protocol(faces: PairListFaces) -> ListedPairs:
    assert isinstance(faces.protocol, ListedPairs)
    return faces.protocol


def _write(root: Path, *lines: str) -> Path:
    """A list with these lines, and a picture at every path that they name."""
    for word in {word for line in lines for word in line.split() if word.endswith(".png")}:
        (root / word).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (56, 56)).save(root / word)
    path = root / "list.txt"
    path.write_text("\n".join(lines))
    return path


def _groups(faces: PairListFaces) -> set[frozenset[str]]:
    """Which images share an identity."""
    return {frozenset(np.array(faces.names)[faces.identity == person]) for person in set(faces.identity.tolist())}


@pytest.mark.parametrize(
    ("form", "separator"), [*(("paths", separator) for separator in (" ", "\t", ",", ", ")), ("numbered", " ")]
)
def test_pairs_of_every_form(tmp_path: Path, form: Any, separator: str) -> None:
    faces = _faces(write_pair_list(tmp_path, form, people=3, separator=separator))
    names, protocol = faces.names, _protocol(faces)
    assert names == [f"person{person:02d}/person{person:02d}_000{image}.png" for person in range(3) for image in (1, 2)]
    assert protocol.first.tolist() == [0, 0, 2, 2, 4, 4]
    assert protocol.second.tolist() == [1, 3, 3, 5, 5, 1]
    assert protocol.same.tolist() == [True, False] * 3
    np.testing.assert_array_equal(faces.image(2), np.asarray(Image.open(tmp_path / names[2])))
    assert faces.identity.tolist() == [0, 0, 1, 1, 2, 2]  # a folder is a person
    assert faces.identity_names == ["person00", "person01", "person02"]
    assert faces.indices("test").tolist() == list(range(6))


def test_paths_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "one person").mkdir()
    for name in ("a b.png", "c.png"):
        Image.new("RGB", (56, 56)).save(tmp_path / "one person" / name)
    (tmp_path / "list.txt").write_text("one person/a b.png\t./one person//c.png\tsame\n")
    assert _faces(tmp_path / "list.txt").names == ["one person/a b.png", "one person/c.png"]


@pytest.mark.parametrize(
    ("label", "same"), [("1", True), ("same", True), ("Same", True), ("0", False), ("-1", False), ("diff", False)]
)
def test_labels(tmp_path: Path, label: str, same: bool) -> None:
    assert _protocol(_faces(_write(tmp_path, f"p/a.png q/b.png {label}"))).same.tolist() == [same]


@pytest.mark.parametrize(
    ("header", "folds"), [("2 1", [0, 0, 1, 1]), ("4", [0] * 4), ("10 300", [0] * 4), ("", [0] * 4)]
)
def test_folds_of_column_or_header(tmp_path: Path, header: str, folds: list[int]) -> None:
    path = write_pair_list(tmp_path, "numbered", people=2)
    path.write_text(f"{header}\n{path.read_text()}")
    assert _protocol(_faces(path)).fold.tolist() == folds
    assert _protocol(_faces(write_pair_list(tmp_path, "folds"))).fold.tolist() == [0, 0, 1, 1] * 2


@pytest.mark.parametrize("pairs", [1, 9, 10, 11, 19, 20, 57])
def test_contiguous_folds_are_those_of_kfold(pairs: int) -> None:
    expected = np.zeros(pairs, dtype=np.int64)
    for fold, (_, members) in enumerate(KFold(10).split(np.arange(pairs)) if pairs >= 10 else ()):
        expected[members] = fold
    np.testing.assert_array_equal(contiguous_folds(pairs), expected)


def test_same_pair_merges_two_folders(tmp_path: Path) -> None:
    faces = _faces(_write(tmp_path, "p/a.png q/b.png 1", "q/c.png r/d.png same", "s/e.png p/f.png 0"))
    assert _groups(faces) == {
        frozenset({"p/a.png", "q/b.png", "q/c.png", "r/d.png", "p/f.png"}),
        frozenset({"s/e.png"}),
    }
    assert faces.identity_names == ["p", "s"]


def test_folder_with_different_pair(tmp_path: Path) -> None:
    faces = _faces(
        _write(tmp_path, "all/a.png all/b.png 0", "all/a.png all/c.png 1", "d.png p/f.png 0", "e.png p/g.png 0")
    )
    together = [{"all/a.png", "all/c.png"}, {"all/b.png"}, {"d.png"}, {"e.png"}, {"p/f.png", "p/g.png"}]
    assert _groups(faces) == {frozenset(group) for group in together}


def test_landmarks_of_photos_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(root: Path, names: Sequence[str], *options: object) -> FoundLandmarks:
        calls.append((root, names, *options))
        return FoundLandmarks(names, np.stack([np.full((5, 2), 7.0), np.full((5, 2), np.nan)]), np.full((2, 2), 56))

    monkeypatch.setattr(pair_list, "find_landmarks", record)
    path = _write(tmp_path, "p/a.png p/b.png 1")
    with pytest.warns(
        UserWarning, match=r"no face found in 1 of 2 images \(p/b\.png\): a mean face's landmarks stand in"
    ):
        faces = PairListFaces(str(tmp_path), str(path), detector="mtcnn", detector_weights="w")
    assert (faces.landmarks == 7).all()
    assert calls == [(tmp_path, ["p/a.png", "p/b.png"], "mtcnn", "w")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p/a.png p/b.png", "expected IMAGE IMAGE LABEL"),
        ("p/a.png p/b.png maybe", "expected IMAGE IMAGE LABEL"),
        ("p/a.png p/b.png 1 one", "expected IMAGE IMAGE LABEL"),
        ("p/a.png p/b.png 1 1 1", "expected IMAGE IMAGE LABEL"),
        ("p/a.png,,1", "expected IMAGE IMAGE LABEL"),
        ("p/a.png ../b.png 1", r"'\.\./b\.png' leads out of the set's folder"),
        ("p/a.png p/../../b.png 1", "leads out of the set's folder"),
        ("/etc/passwd p/a.png 1", "'/etc/passwd' leads out"),
        ("C:\\secret.png p/a.png 1", "leads out"),
        ("..\\b.png p/a.png 1", "leads out"),
        ("../p 1 2", "leads out"),
        ("p/a.png ./p//a.png 1", "'p/a.png' is paired with itself"),
        ("p/a.png p/b.png 1 2", "fold on some lines and not on others"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = _write(tmp_path, "p/a.png p/b.png 1", "")
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(ValueError, match=rf"^.*list\.txt:3: .*{message}") as error:
        _faces(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"4\n", "holds no pair"), (b"\xff\xfe\x00", "is not UTF-8 text")]
)
def test_list_without_pairs_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no list at .*list\.txt: give a text file"):
        _faces(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _faces(tmp_path / "list.txt")


def test_missing_images_are_named(tmp_path: Path) -> None:
    path = write_pair_list(tmp_path, "numbered", people=4)
    for person in (0, 2):
        for image in (tmp_path / f"person{person:02d}").iterdir():
            image.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"4 of 8 images of pairs\.txt are missing .*00_0001\.jpg, .*\.\.\.\): give the folder"
    ):
        _faces(path)


def test_aligned_images(tmp_path: Path) -> None:
    path = _write(tmp_path, "p/a.png p/b.png 1")
    expected = (np.array(TEMPLATES["arcface"].points) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(_faces(path).landmarks[1], expected, atol=1e-4)
    with pytest.raises(ValueError, match="unknown face template 'mtcnn'"):
        PairListFaces(str(tmp_path), "nowhere", aligned="mtcnn")
    Image.new("RGB", (40, 56)).save(tmp_path / "p/b.png")
    with pytest.raises(ValueError, match=r"b\.png is 40 x 56 pixels"):
        _faces(path)
