"""Names of people: compact tables, and people in two sets, found whatever the spelling of their names."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.data.celeba import CelebaFaces
from deocc.data.datamodule import MaskedFaceDataModule
from deocc.data.face_set import NameTable, Split, name_key, read_people
from tests.fake_sets.celeba import write_celeba

_NUMBERS = [1000 - 7 * person for person in range(8)]  # the CelebA twin's identity number of each ORL person


_TABLE = ["ann/1.jpg", "", "Zoë/ü.png", "broken\udcff.png", "ann/1.jpg"]


def test_table_is_a_list_of_names() -> None:
    table = NameTable(iter(_TABLE))
    assert list(table) == _TABLE
    assert [table[at] for at in (0, 2, -1, -5)] == [_TABLE[at] for at in (0, 2, -1, -5)]
    assert list(table[1:4]) == _TABLE[1:4]
    assert list(table[::-2]) == _TABLE[::-2]
    assert (len(table), table.index("Zoë/ü.png"), "x" in table) == (5, 2, False)
    assert list(pickle.loads(pickle.dumps(table))) == _TABLE
    assert list(NameTable([])) == []
    for place in (5, -6):
        with pytest.raises(IndexError):
            table[place]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_celeba(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(scope="module")
def faces(root: Path) -> CelebaFaces:
    return CelebaFaces(str(root))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("George_W_Bush", "George W. Bush"),
        ("Penélope Cruz", "Penelope_Cruz"),
        ("Pene\u0301lope Cruz", "PEN\u00c9LOPE CRUZ"),  # an accent of its own, and one in the letter
        ("Jean-Claude Van Damme", "jean claude van damme"),
        ("Catherine O'Hara", "Catherine_OHara"),
        ("J.K. Rowling", "J. K. Rowling"),
        ("Lech Wałęsa", "Lech_Walesa"),
        ("Søren Straße", "Soren_Strasse"),
    ],
)
def test_spellings_have_one_key(one: str, other: str) -> None:
    assert name_key(one) == name_key(other) != ""


@pytest.mark.parametrize(
    ("one", "other"), [("Ann Lee", "Anna Lee"), ("Louis XIV", "Louis XV"), ("王菲", "王非"), ("Ann 1", "Ann 2")]
)
def test_different_names_have_other_keys(one: str, other: str) -> None:
    assert name_key(one) != name_key(other)


def test_numbers_in_lists_are_no_names(tmp_path: Path) -> None:
    path = tmp_path / "people.txt"
    path.write_text("2\n2\nAaron_Eckhart\t1\n50_Cent\t3\n\n1\nZoë Ball 2\nNoCount\n", encoding="utf-8")
    assert read_people(path) == ["Aaron_Eckhart", "50_Cent", "Zoë Ball", "NoCount"]
    path.write_text("name,images\nAJ_Cook,1\nAJ Lamas, 2\nAbel_Pacheco,1,4,\n", encoding="utf-8")
    assert read_people(path)[1:] == ["AJ_Cook", "AJ Lamas", "Abel_Pacheco"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"10\n601\n", "holds no name: give"), (b"Zo\xeb Ball\n", "is not UTF-8 text")]
)
def test_list_without_names_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "people.txt"
    with pytest.raises(FileNotFoundError, match=r"no list at .*people\.txt: give a text file"):
        read_people(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_people(path)
    assert "\n" not in str(error.value)


def _numbers(faces: CelebaFaces, split: Split) -> set[int]:
    """The identity numbers of a split's people."""
    return {sorted(_NUMBERS)[person] for person in faces.identity[faces.indices(split)].tolist()}


def _names_file(path: Path, form: str, faces: CelebaFaces) -> Path:
    """Who is who: person n of ORL is called `Jané D. NTH`, by the image or by the identity."""
    by_number = {number: f"Jané D. {'ABCDEFGH'[person]}th" for person, number in enumerate(_NUMBERS)}
    rows = [(str(number), name) for number, name in by_number.items()]
    if form == "image":
        rows = [
            (name, by_number[sorted(_NUMBERS)[person]])
            for name, person in zip(faces.names, faces.identity.tolist(), strict=True)
        ]
    path.write_text("".join(f"{key} {name}\n" for key, name in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["image", "identity"])
def test_people_of_another_set_are_excluded(root: Path, faces: CelebaFaces, tmp_path: Path, form: str) -> None:
    people = tmp_path / "people.txt"
    people.write_text("1\n4\nJane_D_BTH\t3\nJane_D_Fth\t1\nJane_D_Hth\t1\nSomeone_Else\t2\n")
    names = _names_file(tmp_path / "names.txt", form, faces)
    named = CelebaFaces(str(root), names=str(names))  # which excludes no one
    assert (len(named), named.excluded) == (32, []) and named.identity_names is not None
    chosen = CelebaFaces(str(root), exclude=str(people), names=str(names))
    assert chosen.excluded == ["Jané D. Fth", "Jané D. Bth"]
    assert _numbers(chosen, "train") == {_NUMBERS[0], _NUMBERS[2], _NUMBERS[3]}
    assert _numbers(chosen, "val") == {_NUMBERS[4]}
    assert _numbers(chosen, "test") == set(_NUMBERS[6:])  # H is tested, not learnt from
    assert len(chosen) == 24
    assert chosen.identity_names is not None
    assert [chosen.identity_names[person] for person in chosen.identity[:3]] == [
        "Jané D. Ath",
        "Jané D. Cth",
        "Jané D. Dth",
    ]
    assert MaskedFaceDataModule(chosen, size=64).num_identities == 3
    position = chosen.names.index("000003.jpg")
    np.testing.assert_array_equal(chosen.image(position), faces.image(2))
    np.testing.assert_array_equal(chosen.landmarks[position], faces.landmarks[2])


def test_people_without_a_name_are_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "people.txt").write_text("Ann\nBob\n")
    (tmp_path / "names.txt").write_text("key name\n1000 Ann\n958 Bob\n")  # ORL's persons 0 (train) and 6 (test)
    with pytest.warns(
        UserWarning,
        match="5 training and validation people have no name: whether .*people.txt holds them cannot be told",
    ):
        chosen = CelebaFaces(str(root), exclude=str(tmp_path / "people.txt"), names=str(tmp_path / "names.txt"))
    assert chosen.excluded == ["Ann"]
    assert chosen.identity_names is not None
    assert chosen.identity_names[1:3] == ["Bob", "CelebA identity 965"]


def test_names_of_a_subset_in_png(root: Path, faces: CelebaFaces, tmp_path: Path) -> None:
    """Lists name all images, and JPEG files; people are named by images that this copy does not have."""
    subset = shutil.copytree(root, tmp_path / "celeba")
    absent = {faces.names[index] for index in np.unique(faces.identity, return_index=True)[1].tolist()}
    for path in sorted(subset.rglob("*.jpg")):
        if path.name not in absent:
            Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    names = _names_file(tmp_path / "names.txt", "image", faces)
    kept = [line for line in names.read_text().splitlines() if line.split()[0] in absent]
    names.write_text("\n".join(kept) + "\n")
    (tmp_path / "people.txt").write_text("Jane_D_BTH\t3\n")
    with pytest.warns(UserWarning, match="for a subset, nothing needs to be done"):
        chosen = CelebaFaces(str(subset), exclude=str(tmp_path / "people.txt"), names=str(names))
    assert chosen.excluded == ["Jané D. Bth"] and all(name.endswith(".png") for name in chosen.names)
    (tmp_path / "people.txt").write_text("Someone_Else\t3\n")
    with pytest.warns(UserWarning) as told:
        CelebaFaces(str(subset), exclude=str(tmp_path / "people.txt"), names=str(names))
    assert str(told[-1].message).endswith("people.txt names no one of this copy of CelebA: no one is excluded")


@pytest.mark.parametrize(
    ("names", "exclude", "error", "message"),
    [
        (
            "nowhere.txt",
            None,
            FileNotFoundError,
            "nowhere.txt: give a text file with lines IMAGE NAME or",
        ),
        ("others.txt", None, ValueError, "others.txt names no one in CelebA: its lines have to be"),
        ("names.txt", "nowhere.txt", FileNotFoundError, "no list at"),
        ("names.txt", "everybody.txt", ValueError, "leaves no one for train and val: check"),
    ],
)
def test_unusable_names_are_refused(
    root: Path,
    faces: CelebaFaces,
    tmp_path: Path,
    names: str,
    exclude: str | None,
    error: type[Exception],
    message: str,
) -> None:
    _names_file(tmp_path / "names.txt", "identity", faces)
    (tmp_path / "others.txt").write_text("1 Ann\n2 Bob\n")
    (tmp_path / "everybody.txt").write_text("".join(f"Jane_D_{letter}th\n" for letter in "abcdefgh"))
    with pytest.raises(error) as caught:
        CelebaFaces(str(root), names=str(tmp_path / names), exclude=exclude and str(tmp_path / exclude))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
