"""A list or a folder says which images show real occluders: no mask is drawn on them, and rows are named for it."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from deocc.data import FolderFaces, MaskedFaceDataModule, PairListFaces
from deocc.data.face_set import FaceSet
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.report import summary_table
from deocc.evaluation.results import build_results
from deocc.masking import list_kinds
from tests.conftest import SMALL, run_deocc
from tests.fake_sets.faces import save_face
from tests.fake_sets.pair_list import write_pair_list

Column = Literal["first", "second", "both"]


def listed(root: Path, occluded: Column | None, **settings: str) -> PairListFaces:
    """Each of four people is compared with itself and with the next; image 2 of a person is in the second column."""
    return PairListFaces(str(root), str(write_pair_list(root)), "arcface", occluded=occluded, **settings)


def embedded(faces: FaceSet) -> list[EmbeddingSet]:
    """One-hot embeddings of the bare, then of the occluded test images; a loader without images gives none."""
    sets = []
    for loader in MaskedFaceDataModule(faces, size=64).test_dataloader():
        for batch in loader:
            embedding = torch.nn.functional.normalize(torch.eye(40)[batch["identity"]] + 0.1)
            ids = {name: batch[name] for name in ("identity", "index", "kind", "seed")}
            sets.append(EmbeddingSet(embedding, **ids))
    return sets


@pytest.mark.parametrize(("column", "masked_image"), [("first", "1"), ("second", "2")])
def test_no_mask_is_drawn(column: Column, masked_image: str, tmp_path: Path) -> None:
    faces = listed(tmp_path, column, occluder="n95")
    data = MaskedFaceDataModule(faces, size=64)
    gallery, probes = data.test_dataloader()
    for loader, masked in ((gallery, False), (probes, True)):
        (batch,) = loader
        names = [faces.names[index] for index in batch["index"].tolist()]
        assert len(names) == 4 and all(name.endswith(f"{masked_image}.png") is masked for name in names)
        given = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(given["masked_face"], given["face"])
        assert ("mask" not in given) is masked  # a real mask must be predicted
        assert set(batch["kind"].tolist()) == ({list_kinds().index("n95")} if masked else {-1})


def test_masks_are_drawn_without_the_option(tmp_path: Path) -> None:
    faces = listed(tmp_path, None)
    assert faces.occluder is None and type(faces.protocol).__name__ == "ListedPairs"


@pytest.mark.parametrize("column", ["first", "second"])
def test_rows_are_bare_against_masked(column: Column, tmp_path: Path) -> None:
    faces = listed(tmp_path, column)
    faces = listed(tmp_path, column)
    gallery, probe = embedded(faces)
    rows = {"teacher_clean": gallery, "student_clean": gallery, "teacher_masked": probe, "student": probe}
    results = build_results(rows, {}, list_kinds(), {}, faces.protocol, replicates=10).content
    assert results["protocol"] == "OccludedPairs"
    assert results["rows"]["teacher_masked"]["pairs"] == {"same": 4, "different": 4}
    assert results["rows"]["teacher_masked"]["eer"] == 0 and "student_minus_teacher_masked" in results
    table = summary_table(results)
    assert "clean-masked" in table and "clean-clean" not in table and "masked-masked" not in table


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (
            "p/a.png p/b.png 1\nq/a.png p/a.png 0\n",
            {},
            r"pairs\.txt: 'p/a\.png' is occluded in one pair and bare in another: .* bare, first, second or both",
        ),
        ("p/a.png p/b.png 1 first\nq/a.png p/a.png 0\n", {}, r"pairs\.txt:2: occluded on some lines and not on others"),
        ("p/a.png p/b.png 1 third\n", {}, r"pairs\.txt:1: .*expected .*\[OCCLUDED\].* bare, first, second, both"),
        ("p/a.png p/b.png 1\n", {"occluder": "veil"}, "unknown occluder 'veil': choose from .*surgical"),
    ],
)
def test_contradictions(lines: str, settings: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(lines)
    for name in ("p/a.png", "p/b.png", "q/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        PairListFaces(str(tmp_path), str(tmp_path / "pairs.txt"), "arcface", occluded="second", **settings)


def test_column_of_the_list(tmp_path: Path) -> None:
    write_pair_list(tmp_path)
    a, b = ("person{0:02d}/person{0:02d}_000" + f"{image}.png" for image in (1, 2))
    lines = []
    for person in range(4):
        other = (person + 1) % 4
        lines += [f"{a.format(person)} {b.format(person)} 1 second", f"{b.format(person)} {a.format(other)} 0 first"]
        lines += [f"{a.format(person)} {a.format(other)} 0 bare", f"{b.format(person)} {b.format(other)} 0 both"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    faces = PairListFaces(str(tmp_path), str(tmp_path / "pairs.txt"), "arcface")
    gallery, probe = embedded(faces)
    assert {faces.names[index][-5] for index in gallery.index.tolist()} == {"1"}
    assert {faces.names[index][-5] for index in probe.index.tolist()} == {"2"}
    cross = faces.protocol.cross(gallery, probe)
    assert cross.same.tolist() == [True, False] * 4
    assert cross.first_identity[~cross.same].tolist() == [1, 2, 3, 0]  # the bare image comes first
    for members in (gallery, probe):
        within = faces.protocol.within(members)
        assert not within.same.any() and len(within.same) == 4


def test_only_occluded_images(tmp_path: Path) -> None:
    faces = listed(tmp_path, "both")
    (probe,) = embedded(faces)
    found = build_results({"student": probe}, {}, list_kinds(), {}, faces.protocol, replicates=10)
    results = found.content
    assert found.pairs == {} and list(results["rows"]) == ["teacher_clean", "student_clean", "student"]
    assert results["rows"]["student"]["masked_masked"]["pairs"] == {"same": 4, "different": 4}
    table = summary_table(results)
    assert "masked-masked" in table and "clean" not in table


@pytest.mark.parametrize("occluded", ["second", "both"])
def test_command(occluded: str, stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = {"root": tmp_path, "pairs": write_pair_list(tmp_path), "aligned": "arcface", "occluded": occluded}
    chosen = [f"--data.face_set.init_args.{name}={value}" for name, value in faces.items()]
    run_deocc(
        "test", "--checkpoint", str(stage2), "--config", "data/pairs", "--run", str(tmp_path / "out"), *SMALL, *chosen
    )
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    four = {"same": 4, "different": 4}
    scores = rows["student_predicted_mask"]
    assert (scores if occluded == "second" else scores["masked_masked"])["pairs"] == four
    table = capsys.readouterr().out
    assert ("masked-masked" in table) is (occluded == "both") and "clean-clean" not in table


@pytest.mark.parametrize("place", ["{person}/masked/{image}.png", "{person}/{image}_masked.png"])
def test_folder_of_people(place: str, tmp_path: Path) -> None:
    for person in range(12):
        for image in range(3):
            name = "{person}/{image}.png" if image < 2 else place
            path = tmp_path / name.format(person=f"person{person:02d}", image=image)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_face(path, person, image, 112, 112)
    faces = FolderFaces(str(tmp_path), occluded="*masked*", occluder="cloth", seed=1)
    data = MaskedFaceDataModule(faces, size=64, eval_kinds=["box"])
    data.setup("fit")
    for loader in (data.train_dataloader(), *data.val_dataloader()):
        for batch in loader:
            assert not any("masked" in faces.names[index] for index in batch["index"].tolist())
    (probes,) = data.val_dataloader()[1]
    assert data.on_after_batch_transfer(probes, 1)["mask"].any()  # validation people get drawn masks
    gallery, probe = embedded(faces)
    assert all("masked" in faces.names[index] for index in probe.index.tolist())
    assert set(probe.kind.tolist()) == {list_kinds().index("cloth")} and set(gallery.kind.tolist()) == {-1}
    (batch,) = data.test_dataloader()[1]
    assert "mask" not in data.on_after_batch_transfer(batch, 1)


@pytest.mark.parametrize("pattern", ["*.jpeg", "*"])
def test_pattern_that_compares_nothing(pattern: str, tmp_path: Path) -> None:
    for person in range(12):
        (tmp_path / f"{person:02d}").mkdir()
        save_face(tmp_path / f"{person:02d}" / "a.png", person, 0, 112, 112)
    with pytest.raises(ValueError, match=r"matches \d+ of the \d+ images of test people.*give a pattern"):
        FolderFaces(str(tmp_path), occluded=pattern, seed=1)
