"""Every input of the page gives a result or a message of one line."""

import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deocc.commands.demo import Answers
from deocc.commands.demo_analysis import NO_MASK, Analyst
from deocc.inference.faces import FaceFinder
from deocc.inference.pipeline import Pipeline


@pytest.fixture
def uploads(photos: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder with the two photos as uploads."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    for photo in photos:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture
def answers(pipeline: Pipeline, finder: FaceFinder, uploads: Path) -> Answers:
    return Answers(Analyst(pipeline, None), finder, uploads)


def upload(path: Path | str, name: str | None = None) -> dict[str, Any]:
    return {"path": str(path), "orig_name": name}


def grey_png(side: int) -> bytes:
    content = BytesIO()
    Image.fromarray(np.full((side, side, 3), 127, np.uint8)).save(content, format="PNG")
    return content.getvalue()


def test_answers_show_result(answers: Answers, uploads: Path) -> None:
    first, second = upload(uploads / "0.png"), upload(uploads / "1.png")
    html = answers.answer(first, second, "surgical", 0)
    assert "deocc-panels" in html and "The two photos" in html and "deocc-error" not in html
    assert "The two photos" not in answers.answer(first, None, NO_MASK, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.png", b"Dear reader", "letter.png is not an image"),
        ("<b>.png", b"no", "&lt;b&gt;.png is not an image"),
        ("cut.png", None, "cannot read cut.png as a photo"),
        ("wall.png", grey_png(200), "no face found in wall.png"),
        ("dot.png", grey_png(1), "no face found in dot.png"),
    ],
)
def test_answers_unusable_photo(
    answers: Answers, uploads: Path, name: str, content: bytes | None, message: str
) -> None:
    (uploads / "file").write_bytes((uploads / "0.png").read_bytes()[:5000] if content is None else content)
    html = answers.answer(upload(uploads / "file", name), None, "surgical", 0)
    assert message in html and html.count('role="alert"') == 1 and len(html.strip().splitlines()) == 1
    assert "Traceback" not in html and str(uploads) not in html


def test_answers_invalid_input(answers: Answers, uploads: Path) -> None:
    photo = upload(uploads / "0.png")
    assert "no photo yet" in answers.answer(None, None, "surgical", 0)
    assert "a.png is no longer here" in answers.answer(upload(uploads / "gone", "a.png"), None, "surgical", 0)
    assert "the second photo is no longer here" in answers.answer(photo, {"path": None}, "surgical", 0)
    for seed in (-1, 1.5, None, "x", 2**31):
        assert "give a whole number from 0" in answers.answer(photo, None, "surgical", seed)  # type: ignore[arg-type]
    assert "unknown occluder" in answers.answer(photo, None, "helmet", 0)


def test_answers_read_only_uploads(answers: Answers, uploads: Path, photos: tuple[Path, Path]) -> None:
    (uploads / "link.png").symlink_to(photos[0])
    relative = os.path.relpath(photos[0], uploads)
    for path in (photos[0], uploads / relative, uploads / "link.png", uploads / "a\0.png", uploads / ("a" * 300)):
        assert "no longer here" in answers.answer(upload(path), None, NO_MASK, 0)
    assert "deocc-panels" in answers.answer(upload(uploads / "0.png"), None, NO_MASK, 0)
