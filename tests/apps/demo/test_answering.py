"""Every bad input is one line on the page, and nobody may ask too often."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.commands.demo.analysis import NO_MASK, Analyst
from deocc.commands.demo.server import Answers, PhotoMemory, RateLimit
from deocc.inference.faces import FaceFinder
from deocc.inference.pipeline import Pipeline


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def answers(pipeline: Pipeline, finder: FaceFinder) -> Answers:
    return Answers(Analyst(pipeline, None), finder, RateLimit(), PhotoMemory(Path("/")))


@pytest.fixture
def photos(photos: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two photos, for what is read is deleted."""
    folder = tmp_path / "given"
    folder.mkdir()
    first, second = (Path(shutil.copy(photo, folder)) for photo in photos)
    return first, second


def test_a_good_photo_is_answered(answers: Answers, photos: tuple[Path, Path]) -> None:
    first, second = ({"path": str(path), "orig_name": path.name} for path in photos)
    html = answers.answer(first, second, "surgical", 0, "here")
    assert "deocc-panels" in html and "The two photos" in html and "deocc-error" not in html
    assert "The two photos" not in answers.answer(first, None, NO_MASK, 0, "here")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("letter.png", b"Dear reader", "letter.png is not an image"),
        ("<b>.png", b"no", "&lt;b&gt;.png is not an image"),
        ("cut.png", None, "cannot read cut.png as a photo"),
        ("wall.png", "grey", "no face found in wall.png"),
        ("dot.png", "dot", "no face found in dot.png"),
    ],
)
def test_a_photo_that_cannot_be_used_is_one_line(
    answers: Answers, photos: tuple[Path, Path], tmp_path: Path, name: str, content: bytes | str | None, said: str
) -> None:
    file = tmp_path / "upload"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is None:
        file.write_bytes(photos[0].read_bytes()[:5000])
    else:
        side = 1 if content == "dot" else 200
        Image.fromarray(np.full((side, side, 3), 127, np.uint8)).save(file, format="PNG")
    html = answers.answer({"path": str(file), "orig_name": name}, None, "surgical", 0, "here")
    assert said in html and html.count('role="alert"') == 1 and len(html.strip().splitlines()) == 1
    assert "Traceback" not in html and str(tmp_path) not in html


def test_what_is_missing_or_out_of_range_is_one_line(
    answers: Answers, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    photo = {"path": str(photos[0]), "orig_name": None}
    assert "no photo yet" in answers.answer(None, None, "surgical", 0, "here")
    assert "a.png is no longer here" in answers.answer(
        {"path": str(tmp_path / "gone"), "orig_name": "a.png"}, None, "surgical", 0, "here"
    )
    assert "the second photo is no longer here" in answers.answer(photo, {"path": None}, "surgical", 0, "here")
    for seed in (-1, 1.5, None, "x", 2**31):
        assert "give a whole number from 0" in answers.answer(photo, None, "surgical", seed, "here")
    assert "unknown occluder" in answers.answer(photo, None, "helmet", 0, "here")


def test_a_file_beyond_the_uploads_is_not_read(
    pipeline: Pipeline, finder: FaceFinder, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    answers = Answers(Analyst(pipeline, None), finder, RateLimit(), PhotoMemory(tmp_path / "uploads"))
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link.png").symlink_to(photos[0])
    for path in (
        photos[0],
        uploads / os.path.relpath(photos[0], uploads),
        uploads / "link.png",
        uploads / "a\0.png",
        uploads / ("a" * 300),
    ):
        assert "no longer here" in answers.answer({"path": str(path)}, None, NO_MASK, 0, "here")
    assert photos[0].is_file()
    (uploads / "own.png").write_bytes(photos[0].read_bytes())
    assert "deocc-panels" in answers.answer({"path": str(uploads / "own.png")}, None, NO_MASK, 0, "here")


def test_a_photo_is_off_the_disk_once_it_was_read_and_can_be_shown_again(
    pipeline: Pipeline, finder: FaceFinder, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "hash").mkdir(parents=True)
    given = {"path": shutil.copy(photos[0], uploads / "hash")}
    answers = Answers(Analyst(pipeline, None), finder, RateLimit(), PhotoMemory(uploads))
    first = answers.answer(given, None, "surgical", 0, "here")
    assert "deocc-panels" in first and list(uploads.rglob("*")) == []
    assert answers.answer(given, None, "surgical", 0, "here") == first
    assert "deocc-panels" in answers.answer(np.asarray(Image.open(photos[1])), None, "surgical", 0, "here")


def test_memory_forgets_after_its_time_and_holds_twenty_photos_at_most(tmp_path: Path) -> None:
    memory = PhotoMemory(tmp_path)
    for number in range(25):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
        assert memory.take(str(tmp_path / f"{number}.png")) == bytes([number])
    assert len(memory) == 20 and memory.take("24.png") == bytes([24])
    with pytest.raises(FileNotFoundError):
        memory.take("0.png")
    memory = PhotoMemory(tmp_path, seconds=0.1)
    (tmp_path / "0.png").touch()
    memory.take("0.png")
    end = time.monotonic() + 30
    while len(memory) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(memory) == 0


def test_the_limit_is_for_each_client_and_ends() -> None:
    clock = Clock()
    limit = RateLimit(2, 60, clock)
    limit.check("a")
    clock.now = 20
    limit.check("a")
    with pytest.raises(ValueError, match="wait 41 s"):
        limit.check("a")
    limit.check("b")
    clock.now = 60
    limit.check("a")
    with pytest.raises(ValueError, match="wait 21 s"):
        limit.check("a")


def test_who_asks_too_often_is_told_so(pipeline: Pipeline, finder: FaceFinder) -> None:
    answers = Answers(Analyst(pipeline, None), finder, RateLimit(1, 60, Clock()), PhotoMemory(Path("/")))
    assert "no photo yet" in answers.answer(None, None, "box", 0, "here")
    assert "the limit is 1 answers in 60 s: wait 61 s" in answers.answer(None, None, "box", 0, "here")
