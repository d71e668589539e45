import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from deocc import runs
from deocc.commands.verify import main
from deocc.inference import model_folder
from deocc.inference.faces import SeveralFacesError
from deocc.inference.network import FaceNetwork, FaceOutput
from deocc.inference.pipeline import Pipeline
from tests.fake_sets.faces import save_face
from tests.real_model import SAME, TESTED, cover
from tests.scenes import TWO, Pasted, draw_scene

pytestmark = pytest.mark.usefixtures("shared_detector")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with photos of person 20 (`a1`, `a2`), 25 (`b`), 0 and 4 (`two`), and without a face."""
    monkeypatch.chdir(tmp_path)
    for name, person, image in (("a1", 20, 0), ("a2", 20, 2), ("b", 25, 0)):
        save_face(Path(f"{name}.png"), person, image, 276, 336)
    draw_scene(TWO).save("two.png")
    draw_scene(()).save("empty.png")
    Path("text.png").write_text("no image")
    return tmp_path


def run(model: Path, *argv: str) -> int:
    return main([*argv, "--checkpoint", str(model)])


@pytest.mark.usefixtures("photos")
def test_verify_real_faces(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "a1.png", "a2.png") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("same: similarity 0.9")
    assert "same from 0.700, different below 0.600" in printed
    assert "false-accept rate of 0.01 (clean-clean), of test people's pairs it accepted 0.03" in printed
    assert printed.count("not masked, 100% visible") == 2
    assert "a2.png" in printed
    assert run(model, "a1.png", "b.png") == 1
    assert capsys.readouterr().out.startswith("different: similarity 0.")


@pytest.mark.usefixtures("photos")
def test_verify_to_json(model: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "a1.png", "b.png", "--json") == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    places = {"photo_a": "a1.png", "photo_b": "b.png", "face_a": 1, "face_b": 1}
    details = {name: found[name] for name in ("found_a", "found_b")}
    assert found == {**places, **asdict(pipeline.verify("a1.png", "b.png")), **details}
    assert (details["found_a"]["faces"], details["found_a"]["detector"]) == (1, "mtcnn")
    assert details["found_b"]["left"] < details["found_b"]["right"]
    assert told.err == ""
    assert (found["decision"], found["same_from"], found["tested_false_accept_rate"]) == ("different", SAME, TESTED)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("covered_from", "masked", "answer"), [(0.75, False, "same"), (0.5, True, "same"), (0.05, True, "not sure")]
)
def test_verify_masked_faces(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    covered_from: float,
    masked: bool,
    answer: str,
) -> None:
    cover(monkeypatch, covered_from)
    assert run(model, "a1.png", "a1.png", "--json") == (3 if answer == "not sure" else 0)
    found = json.loads(capsys.readouterr().out)
    assert (found["masked_a"], found["masked_b"], found["decision"]) == (masked, masked, answer)
    assert found["condition"] == ("masked-masked" if masked else "clean-clean")
    if answer == "not sure":
        assert found["visible_a"] < 0.2
        assert "20% are needed" in found["reason"]


@pytest.mark.usefixtures("photos")
def test_verify_all_faces(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_scene((Pasted(0, 300, 60, 230),)).save("again.png")
    assert run(model, "two.png", "again.png", "--all", "--json") == 0
    found = [(each["face_a"], each["face_b"], each["decision"]) for each in json.loads(capsys.readouterr().out)]
    assert found == [(1, 1, "different"), (2, 1, "same")]
    assert run(model, "two.png", "again.png", "--all") == 0
    printed = capsys.readouterr().out
    assert "two.png, face 2 of 2" in printed
    assert printed.count("similarity  ") == 2
    with pytest.raises(SeveralFacesError, match=r"two\.png shows 2 faces .*: choose one with --face N, or crop"):
        run(model, "two.png", "again.png")
    for number, code in (("1", 1), ("2", 0)):
        assert run(model, "two.png", "again.png", "--face", number) == code
        assert f"two.png, face {number} of 2" in capsys.readouterr().out


@pytest.mark.usefixtures("photos")
def test_verify_embeds_each_face_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    forward = FaceNetwork.forward

    def record(self: FaceNetwork, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        batches.append(len(face))
        return forward(self, face, mask)

    monkeypatch.setattr(FaceNetwork, "forward", record)
    assert run(model, "two.png", "two.png", "--all") == 0
    assert batches == [4]


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("argv", "needle"),
    [
        (["a1.png"], "required: B"),
        (["a1.png", "gone.png"], r"no photo at gone\.png"),
        (["a1.png", "empty.png"], r"no face found in empty\.png"),
        (["text.png", "a1.png"], r"text\.png is not an image"),
        (["a1.png", "."], "is a folder, not a photo"),
        (["a1.png", "two.png", "--face", "3"], r"two\.png shows 2 faces: choose a lower --face than 3"),
        (["a1.png", "b.png", "--face", "0"], "--face 0: give a number from 1"),
        (["a1.png", "b.png", "--face", "1", "--all"], "not together with --all"),
        (["a1.png", "b.png", "--false-accept-rate", "1e-4"], r"false-accept rate of 0\.0001 .*choose one of 0\.01"),
        (["a1.png", "b.png", "--aligned", "arcface112", "--detector", "dlib"], "aligned crops need no detector"),
    ],
)
def test_verify_refuses(model: Path, argv: list[str], needle: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        run(model, *argv)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("photos")
def test_verify_without_thresholds(untested_model: Path) -> None:
    with pytest.raises(ValueError, match=r"no thresholds: .*deocc test"):
        run(untested_model, "a1.png", "b.png")


@pytest.mark.usefixtures("photos")
def test_verify_aligned_crops(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((112, 112, 3), 130, np.uint8)).save("crop.png")
    assert run(model, "crop.png", "crop.png", "--aligned", "arcface112", "--json") == 0
    assert json.loads(capsys.readouterr().out)["similarity"] == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("photos")
def test_verify_by_the_pretrained_model(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model_folder, "PRETRAINED", model)
    assert main(["a1.png", "a2.png", "--detector", "dlib", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"deocc: using the pretrained model, {model}; --checkpoint takes another\n"
    assert json.loads(told.out)["decision"] == "same"
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "pretrained")
    message = r"this copy of deocc has no pretrained model .*: name another one"
    with pytest.raises(FileNotFoundError, match=message) as error:
        main(["a1.png", "a2.png"])
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("photos")
def test_verify_by_the_newest_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/mine")
    shutil.copytree(model, folder / "model")
    (folder / runs.CONFIG).write_text("model: {class_path: deocc.modules.DistillationModule}\n")
    (folder / runs.CHECKPOINTS).mkdir()
    (folder / runs.CHECKPOINTS / "last.ckpt").touch()
    for file in (folder / "model").iterdir():
        file.touch()  # newer than the checkpoint
    assert main(["a1.png", "a2.png", "--detector", "dlib", "--json", "--checkpoint", "newest"]) == 0
    told = capsys.readouterr()
    assert told.err == "deocc: using the newest stage-2 run, runs/mine\n"
    assert json.loads(told.out)["decision"] == "same"
