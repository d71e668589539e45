"""Several faces in a photo: none is chosen silently."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from deocc import cli
from deocc.commands import identify, mask, predict
from deocc.detection import Detection
from deocc.inference.faces import FaceFinder, SeveralFacesError, find_rivals
from deocc.inference.pipeline import Pipeline
from tests.scenes import TWO, Pasted, draw_scene

pytestmark = pytest.mark.usefixtures("shared_detector")

BYSTANDER = (Pasted(4, 330, 80, 230), Pasted(0, 40, 100, 70))


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_scene(TWO).save("two.png")
    draw_scene(BYSTANDER).save("bystander.png")


def read_rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_small_faces_are_no_rivals() -> None:
    finder, photo = FaceFinder(112), np.asarray(draw_scene(BYSTANDER))
    assert finder.find_single(photo).box[0] > 300
    assert finder.find_single(photo).count == 2
    with pytest.raises(SeveralFacesError, match=r"shows 2 faces \(left, top, width x height: 1 at 3\d\d, "):
        finder.find_single(np.asarray(draw_scene(TWO)), "two.png")


FIRST = (100.0, 100.0, 200.0, 230.0)


def face(box: tuple[float, float, float, float], score: float) -> Detection:
    return Detection(np.array(box), np.zeros((5, 2)), score)


@pytest.mark.parametrize(
    ("box", "score", "is_rival"),
    [
        ((110, 200, 190, 300), 0.98, False),  # the lower edge of the mask, with chin and neck
        ((110, 200, 190, 300), 0.995, True),  # a child in front
        ((180, 200, 260, 300), 0.9, True),  # beside the first face
        ((110, 240, 190, 340), 0.9, True),  # without overlap
        ((110, 20, 190, 110), 0.9, True),  # above
        ((140, 200, 170, 230), 0.995, False),  # small
    ],
)
def test_rivals(box: tuple[float, float, float, float], score: float, is_rival: bool) -> None:
    first, other = face(FIRST, 0.999), face(box, score)
    assert find_rivals([first, other]) == ({1: first, 2: other} if is_rival else {})


def test_rivals_keep_their_numbers() -> None:
    faces = [face(FIRST, 0.999), face((110, 200, 190, 300), 0.98), face((300, 100, 380, 200), 0.95)]
    assert list(find_rivals(faces)) == [1, 3]
    assert find_rivals(faces[:1]) == {}


def test_pipeline_verify_refuses(pipeline: Pipeline) -> None:
    with pytest.raises(SeveralFacesError, match=r"two\.png shows 2 faces"):
        pipeline.verify("two.png", "bystander.png")


def test_error_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "two.png", "bystander.png", "--json", "--checkpoint", str(model)])
    assert ended.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "several_faces"
    assert error["message"].startswith("two.png shows 2 faces")


def test_gallery_refuses_group_photos(model: Path) -> None:
    Path("gallery/anna").mkdir(parents=True)
    draw_scene(TWO).save("gallery/anna/two.png")
    draw_scene((Pasted(7, 120, 60, 230),)).save("gallery/bob.png")
    assert identify.main(["gallery", "bystander.png", "--checkpoint", str(model)]) == 1
    rows = read_rows("identified.csv")
    assert [row["photo"] for row in rows if row["status"] == "left out"] == ["gallery/anna/two.png"]
    assert [row["faces"] for row in rows if row["status"] == "done"] == ["2"]


def test_mask_counts_and_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert mask.main(["two.png", "--out", "out", "--face", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["face"], row["faces"], row["status"]) == (2, 2, "done")
    assert row["right"] < 300
    assert [each["left"] for each in read_rows("out/masks.csv")] == [str(row["left"])]


def test_predict_counts_and_chooses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["two.png", "--out", "out", "--face", "2", "--json", "--checkpoint", str(model)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["face"], row["faces"], row["embedding"]) == (2, 2, "two-2")
