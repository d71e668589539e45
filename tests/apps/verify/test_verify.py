"""`deocc verify A B`: the answer on real faces, what it says of them, and the one line for what cannot be compared."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc import runs
from deocc.commands.verify import main
from deocc.inference import model_folder as folder
from deocc.inference.pipeline import Pipeline
from tests.apps.photos.scenes import TWO, Pasted, draw_scene
from tests.apps.real_model import SAME, TESTED, cover
from tests.fake_sets.faces import orl_face


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of person 20, `a1` and `a2`, one of person 25, `b`, one of persons 0 and 4, and one of nobody."""
    for name, person, image in (("a1", 20, 0), ("a2", 20, 2), ("b", 25, 0)):
        Image.fromarray(orl_face(person, image, 276, 336)[0]).save(tmp_path / f"{name}.png")
    draw_scene(TWO).save(tmp_path / "two.png")
    draw_scene(()).save(tmp_path / "nobody.png")
    return tmp_path


def _run(model: Path, *words: Path | str) -> int:
    return main([*map(str, words), "--checkpoint", str(model)])


def test_two_photos_of_one_person_are_the_same_and_of_two_different(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(model, photos / "a1.png", photos / "a2.png") == 0
    said = capsys.readouterr().out
    assert said.startswith("same: similarity 0.9")
    for words in (
        "same from 0.500, different below 0.400",
        "false-accept rate of 0.01 (clean-clean)",
        "test people's pairs it accepted 0.03",
    ):
        assert words in said
    assert said.count("not masked, 100% visible") == 2 and str(photos / "a2.png") in said
    assert _run(model, photos / "a1.png", photos / "b.png") == 0
    assert capsys.readouterr().out.startswith("different: similarity 0.")


def test_json_holds_the_verdict(
    model: Path, pipeline: Pipeline, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(model, photos / "a1.png", photos / "b.png", "--json") == 0
    told = capsys.readouterr()
    verdict = pipeline.verify(photos / "a1.png", photos / "b.png")
    found = json.loads(told.out)
    assert found == {"face_a": 1, "face_b": 1, **asdict(verdict)} and told.err == ""
    assert (found["decision"], found["same_from"], found["tested_false_accept_rate"]) == ("different", SAME, TESTED)


@pytest.mark.parametrize(
    ("covered_from", "masked", "answer"), [(0.75, False, "same"), (0.5, True, "same"), (0.05, True, "not sure")]
)
def test_masked_faces_are_said_to_be_and_too_little_of_a_face_is_not_decided_on(
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    covered_from: float,
    masked: bool,
    answer: str,
) -> None:
    cover(monkeypatch, covered_from)
    assert _run(model, photos / "a1.png", photos / "a1.png", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["masked_a"], found["masked_b"], found["decision"]) == (masked, masked, answer)
    assert found["condition"] == ("masked-masked" if masked else "clean-clean")
    if answer == "not sure":
        assert found["visible_a"] < 0.2 and "20% are needed" in found["reason"]


def test_all_compares_every_face_with_every_face(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_scene((Pasted(0, 300, 60, 230),)).save(photos / "again.png")
    assert _run(model, photos / "two.png", photos / "again.png", "--all", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["face_a"], each["face_b"], each["decision"]) for each in found] == [
        (1, 1, "different"),
        (2, 1, "same"),
    ]
    assert _run(model, photos / "two.png", photos / "again.png", "--all") == 0
    said = capsys.readouterr().out
    assert f"{photos / 'two.png'}, face 2" in said and said.count("similarity  ") == 2
    assert _run(model, photos / "two.png", photos / "again.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "different"  # the largest face alone


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["a1.png"], "required: B"),
        (["a1.png", "gone.png"], r"no photo at gone\.png"),
        (["a1.png", "nobody.png"], r"no face found in nobody\.png"),
        (["text.png", "a1.png"], r"text\.png is not an image"),
        (["a1.png", "."], "is a folder, not a photo"),
        (["a1.png", "b.png", "--false-accept-rate", "1e-4"], r"false-accept rate of 0\.0001 .*choose one of 0\.01"),
        (["a1.png", "b.png", "--aligned", "arcface112", "--detector", "dlib"], "aligned crops need no detector"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], needle: str
) -> None:
    monkeypatch.chdir(photos)
    Path("text.png").write_text("no image")
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        _run(model, *words)
    assert "\n" not in str(error.value)


def test_a_model_without_thresholds_decides_nothing(untested_model: Path, photos: Path) -> None:
    with pytest.raises(ValueError, match=r"no thresholds: .*deocc test"):
        _run(untested_model, photos / "a1.png", photos / "b.png")


def test_aligned_crops_need_no_detector(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((112, 112, 3), 130, np.uint8)).save(photos / "crop.png")
    crop = str(photos / "crop.png")
    assert main([crop, crop, "--aligned", "arcface112", "--checkpoint", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["similarity"] == pytest.approx(1, abs=1e-5)


def test_without_a_model_the_pretrained_one_answers_and_is_named(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PRETRAINED", model)
    assert main([str(photos / "a1.png"), str(photos / "a2.png"), "--detector", "dlib", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"deocc: using the pretrained model, {model}; --checkpoint takes another\n"
    assert json.loads(told.out)["decision"] == "same"


def test_a_missing_pretrained_model_is_one_line(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(
        FileNotFoundError, match=r"this copy of deocc has no pretrained model .*: name another one"
    ) as error:
        main([str(photos / "a1.png"), str(photos / "a2.png")])
    assert "\n" not in str(error.value)


def test_the_newest_run_is_used_and_named_on_request(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    run = Path("runs/mine")
    shutil.copytree(model, run / "model")
    (run / runs.CONFIG).write_text("model: {class_path: deocc.modules.DistillationModule}\n")
    (run / runs.CHECKPOINTS).mkdir()
    (run / runs.CHECKPOINTS / "last.ckpt").touch()
    for file in (run / "model").iterdir():
        file.touch()  # newer than the checkpoint
    assert main(["a1.png", "a2.png", "--detector", "dlib", "--json", "--checkpoint", "newest"]) == 0
    told = capsys.readouterr()
    assert told.err == "deocc: using the newest stage-2 run, runs/mine\n"
    assert json.loads(told.out)["decision"] == "same"
