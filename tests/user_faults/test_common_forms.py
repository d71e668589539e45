"""Lists and weights in the forms in which they are widespread."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from deocc.commands.doctor_checks import check_given
from deocc.commands.doctor_installation import Context
from deocc.data import CelebaFaces, FolderFaces, MaskedFaceDataModule, PairListFaces
from deocc.data.lfw import _find_list, _read_folds
from deocc.data.pairs import read_pairs
from deocc.networks import create_embedder
from deocc.networks.embedders.iresnet import BLOCKS, IResNet
from tests.fake_sets.celeba import write_celeba

_PAIRS = [("a/1.jpg", "a/2.jpg", True), ("a/1.jpg", "b/1.jpg", False)]


def read_list(tmp_path: Path, text: str) -> list[tuple[str, str, bool]]:
    (tmp_path / "list.csv").write_text(text)
    return [(pair.first, pair.second, pair.same) for pair in read_pairs(tmp_path / "list.csv", tmp_path)[1]]


@pytest.mark.parametrize(
    "text",
    [
        "image1,image2,label\na/1.jpg,a/2.jpg,1\na/1.jpg,b/1.jpg,0\n",
        "file_1,file_2,is same,fold\na/1.jpg,a/2.jpg,True,0\na/1.jpg,b/1.jpg,False,1\n",
        "\ufeffa/1.jpg\ta/2.jpg\ttrue\na/1.jpg\tb/1.jpg\tFALSE\n",
        "a/1.jpg,a/2.jpg,same,\na/1.jpg,b/1.jpg,different,\n",
        "a/1.jpg 1\na/2.jpg 1\na/1.jpg 0\nb/1.jpg 0\n",
        "a\\1.jpg a\\2.jpg 1\r\na\\1.jpg b\\1.jpg 0\r\n",
    ],
    ids=["header", "words", "bom", "trailing", "two lines", "windows"],
)
def test_list_of_pairs(tmp_path: Path, text: str) -> None:
    assert read_list(tmp_path, text) == _PAIRS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1\nb.jpg 0\n", r"list.csv:1: the two lines of a pair have the labels 1 and 0"),
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", r"list.csv:3: the second line of the pair is missing"),
        ("image1,image2,label\n", "holds no pair below its header"),
        ("a.jpg b.jpg\nc.jpg d.jpg\n", r"list.csv:1: expected IMAGE IMAGE LABEL"),
        (",\na.jpg,b.jpg,1\n", r"list.csv:1: expected IMAGE IMAGE LABEL"),
        ("a.jpg,b.jpg,perhaps\n", r"list.csv:1: expected IMAGE IMAGE LABEL"),
        ("a.jpg,b.jpg,1\nimage1,image2,label\n", r"list.csv:2: expected IMAGE IMAGE LABEL"),
    ],
)
def test_bad_list_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path, text)


def test_two_line_list_is_a_face_set(tmp_path: Path) -> None:
    for name in ("Ada_1.jpg", "Ada_2.jpg", "Bo_1.jpg"):
        Image.new("RGB", (112, 112)).save(tmp_path / name)
    (tmp_path / "pairs_CPLFW.txt").write_text("Ada_1.jpg 1\nAda_2.jpg 1\nAda_1.jpg 0\nBo_1.jpg 0\n")
    faces = PairListFaces(str(tmp_path), str(tmp_path / "pairs_CPLFW.txt"), aligned="arcface")
    assert faces.identity.tolist() == [0, 0, 1]


def write_kaggle(path: Path, folds: int = 3, half: int = 2) -> Path:
    people = [(f"Ada{fold or ''}", f"Bo{fold or ''}") for fold in range(folds)]
    lines = [f"{ada},1,2,\n" * half + f"{ada},1,{bo},3\n" * half for ada, bo in people]
    path.write_text("name,imagenum1,imagenum2,\n" + "".join(lines))
    return path


def test_kaggle_list_of_lfw(tmp_path: Path) -> None:
    pairs, folds = _read_folds(_find_list("pairs.txt", (write_kaggle(tmp_path / "pairs.csv").parent,)), tmp_path)
    assert folds.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert pairs[0][:3] == ("Ada/Ada_0001.jpg", "Ada/Ada_0002.jpg", True)
    assert pairs[3][:3] == ("Ada/Ada_0001.jpg", "Bo/Bo_0003.jpg", False)


@pytest.mark.parametrize("cut", [1, 2, 13])
def test_cut_kaggle_list_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_kaggle(tmp_path / "pairs.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:cut]))
    if cut == 13:  # complete
        assert len(_read_folds(path, tmp_path)[0]) == 12
    else:
        with pytest.raises(ValueError, match=r"get the whole file|holds no pair"):
            _read_folds(path, tmp_path)


def test_celeba_as_png_and_a_subset(tmp_path: Path) -> None:
    root = write_celeba(tmp_path, images=2)
    whole = CelebaFaces(str(root))
    folder = root / "Img/img_align_celeba"
    for path in folder.glob("*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    folder = folder.rename(root / "Img/img_align_celeba_png")
    faces = CelebaFaces(str(root))
    assert list(faces.names) == [name.replace(".jpg", ".png") for name in whole.names]
    assert faces.image(3).shape == (218, 178, 3)
    for name in faces.names[:2]:
        (folder / name).unlink()
    with pytest.warns(UserWarning, match=r"2 of 16 CelebA images are missing .*for a subset"):
        subset = CelebaFaces(str(root))
    assert list(subset.names) == list(faces.names)[2:]
    assert (subset.landmarks == faces.landmarks[2:]).all()
    findings = list(check_given(Context(data=root)))
    assert [finding.level for finding in findings] == ["OK", "warning"]


def test_celeba_without_any_image_is_refused(tmp_path: Path) -> None:
    root = write_celeba(tmp_path, images=2)
    for path in (root / "Img/img_align_celeba").glob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="16 of 16 CelebA images are missing"):
        CelebaFaces(str(root))


def test_sets_without_identities(tmp_path: Path) -> None:
    root = write_celeba(tmp_path / "celeba", images=2)
    whole = CelebaFaces(str(root))
    (root / "Anno/identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match="identities: false"):
        CelebaFaces(str(root))
    faces = CelebaFaces(str(root), identities=False)
    assert list(faces.names) == list(whole.names) and len(set(faces.identity.tolist())) == 16
    assert all((faces.indices(split) == whole.indices(split)).all() for split in ("train", "val", "test"))
    for number in range(20):
        path = tmp_path / f"flat/{'deeper/' * (number % 2)}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112)).save(path)
    with pytest.raises(ValueError, match="of 1 people none falls"), pytest.warns(UserWarning, match="not used"):
        FolderFaces(str(tmp_path / "flat"))
    flat = FolderFaces(str(tmp_path / "flat"), identities=False)
    assert flat.identity.tolist() == list(range(20))
    with pytest.raises(ValueError, match="no identities, which stage 2 learns"):
        _ = MaskedFaceDataModule(face_set=flat).num_identities


def test_cvlface_weights_need_a_colour_order(tmp_path: Path) -> None:
    network = IResNet(BLOCKS["iresnet18"])
    torch.save({f"net.{name}": value for name, value in network.state_dict().items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"does not tell the colour order.*teacher_options"):
        create_embedder("iresnet18", str(tmp_path / "model.pt"))
    for color in ("rgb", "bgr"):
        embedder = create_embedder("iresnet18", str(tmp_path / "model.pt"), color=color)  # type: ignore[arg-type]
        assert embedder.spec.color == color and embedder.pretrained
