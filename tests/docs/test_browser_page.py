"""The page docs/pages/browser in a headless Chromium gives the answers of `deocc.load()`."""

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import deocc
from bench import browser_page
from bench.browser_page import PATIENCE, LeftOutError, build, serving
from bench.chromium import PROGRAM, Browser, browsing
from deocc.data import OrlFaces
from deocc.detection import mtcnn
from deocc.files import checksum
from deocc.geometry import align
from deocc.inference.model_folder import PRETRAINED
from deocc.inference.pipeline import Pipeline, decide
from deocc.masking import list_kinds, render

chromium_only = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
_LOADED = "document.querySelector('#loading')?.innerText.includes('is loaded')"
_MASKED_SEED = 5
_PHOTO_SCALE = 4


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site") / "browser"
    try:
        build(folder)
    except LeftOutError as error:
        pytest.skip(str(error))
    with serving(folder.parent) as root:
        yield f"{root}browser/"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(address: str, chromium: Browser) -> Iterator[Browser]:
    """The loaded page. Afterwards nothing was requested from elsewhere, and there was no error in the console."""
    chromium.open(f"{address}index.html", 1280)
    chromium.wait(_LOADED, PATIENCE)
    yield chromium
    assert chromium.requests and all(request.startswith((address, "data:")) for request in chromium.requests)
    assert chromium.complaints == []


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return deocc.load()


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> dict[str, Path]:
    """Canonical crops of 8-bit pixels: a bare and a masked one of one person, and a bare one of another."""
    orl, folder = OrlFaces(), tmp_path_factory.mktemp("crops")
    (bare, _), (other_photo, landmarks), (stranger, _) = (
        align(orl.image(index), orl.landmarks[index], pipeline.size) for index in (0, 3, 220)
    )
    kind, seed = torch.tensor([list_kinds().index("surgical")]), torch.tensor([_MASKED_SEED])
    masked = render(other_photo[None], landmarks[None], kind, seed)[0][0]
    paths = {}
    for name, crop in (("bare", bare), ("masked", masked), ("stranger", stranger)):
        paths[name] = folder / f"{name}.png"
        Image.fromarray(((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(paths[name])
    return paths


def read_crop(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 127.5 - 1


def choose(page: Browser, number: int, photo: Path) -> None:
    """Choose a photo for the first or the second card, and wait for the result."""
    page.upload(f".card:nth-child({number}) input", photo)
    page.wait(f"{card(number)}.querySelector('.time').innerText || {card(number)}.querySelector('.error')", PATIENCE)


def card(number: int) -> str:
    return f"document.querySelector('.card:nth-child({number})')"


def text(page: Browser, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def pixels(page: Browser, number: int, name: str) -> Tensor:
    """Return a canvas of a card, (3, S, S) in [-1, 1]."""
    url = page.run(f"{card(number)}.querySelector('canvas.{name}').toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def state(page: Browser, address: str, number: int, expression: str) -> Any:
    """Return the value of an expression over `card`, the state of a card."""
    return page.run(
        f"import('{address}page.js').then(({{cards}}) => {{ const card = cards[{number - 1}]; return {expression}; }})"
    )


@chromium_only
@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("bare", "masked"), ("bare", "stranger")])
def test_answers_equal_the_pipeline(
    page: Browser, address: str, pipeline: Pipeline, crops: dict[str, Path], first: str, second: str
) -> None:
    page.run("document.querySelectorAll('.kind select').forEach((each) => { each.value = 'canonical'; })")
    faces = torch.stack([read_crop(crops[name]) for name in (first, second)])
    expected = pipeline.process_faces(faces)
    for number, name in enumerate((first, second), 1):
        choose(page, number, crops[name])
        assert torch.equal(pixels(page, number, "crop"), faces[number - 1])
        difference = (pixels(page, number, "completed") - expected.completed_face[number - 1]).abs()
        assert float(difference.max()) < 4 / 127.5 and float(difference.mean()) < 1 / 127.5
        embedding = torch.tensor(state(page, address, number, "[...card.result.embedding]"))
        assert float(embedding @ expected.embedding[number - 1]) > 0.999
        assert "s to complete and embed it" in text(page, f".card:nth-child({number}) .time")
    verdict = pipeline.verify_faces(*faces)
    assert text(page, "#decision") == verdict.decision == ("same" if second == "masked" else "different")
    assert text(page, "#condition") == verdict.condition
    assert text(page, "#reason").split(" is ")[1] == verdict.reason.split(" is ")[1]
    assert abs(float(text(page, "#similarity")) - verdict.similarity) < 0.005
    for width in (1280, 390):
        page.resize(width)
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")


@chromium_only
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 220])
def test_faces_of_photos_are_found(page: Browser, address: str, pipeline: Pipeline, tmp_path: Path, index: int) -> None:
    photo = Image.fromarray(OrlFaces().image(index))
    photo.resize((_PHOTO_SCALE * photo.width, _PHOTO_SCALE * photo.height)).save(tmp_path / "photo.png")
    choose(page, 1, tmp_path / "photo.png")
    found = pipeline.finder.find_single(np.array(Image.open(tmp_path / "photo.png").convert("RGB")))
    points = torch.tensor(state(page, address, 1, "card.points"))
    matrix = found.matrix
    in_crop = points @ matrix[:, :2].T + matrix[:, 2]
    assert float((in_crop - found.landmarks).abs().max()) < 0.25
    assert float((pixels(page, 1, "crop") - found.face).abs().mean()) < 1 / 127.5
    embedding = torch.tensor(state(page, address, 1, "[...card.result.embedding]"))
    assert float(embedding @ pipeline.embed_faces(found.face[None])[0]) > 0.999
    assert "s to find the face" in text(page, ".time")


@chromium_only
@pytest.mark.slow
def test_points_are_set_by_hand(page: Browser, tmp_path: Path) -> None:
    """If no face is found, the points can be moved by the keyboard."""
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "wall.png")
    choose(page, 1, tmp_path / "wall.png")
    assert text(page, ".status.error").startswith("No face was found: drag the five points")
    page.run("document.querySelector('.mark').focus()")
    page.press("ArrowLeft", 37)
    page.wait("document.querySelector('.time').innerText", PATIENCE)
    assert text(page, ".status") == "Points set by hand."
    (tmp_path / "text.png").write_text("no image")
    choose(page, 1, tmp_path / "text.png")
    assert text(page, ".status.error").startswith("text.png is no image that this browser reads")


@chromium_only
@pytest.mark.slow
def test_decisions_equal_verify(page: Browser, address: str, pipeline: Pipeline) -> None:
    """At each side of each limit, for each calibrated rate."""
    calibration = pipeline.thresholds
    assert calibration is not None
    cases, expected = [], []
    for covered in itertools.combinations_with_replacement((0.0, calibration.masked.limit, 0.4, 0.7), 2):
        for row in calibration.thresholds["clean-clean"]:
            for similarity in (-0.2, 0.25, 0.3, 0.42, 0.5, 0.65, 0.77, 1.0):
                verdict = decide(calibration, similarity, covered, row.target)
                cases.append([similarity, covered, row.target])
                expected.append([verdict.decision, verdict.condition, verdict.reason])
    script = (
        f"Promise.all([import('{address}faces.js'), fetch('model.json').then((file) => file.json())]).then("
        f"([{{decide}}, {{thresholds}}]) => {json.dumps(cases)}.map((words) => decide(thresholds, ...words))"
        ".map(({decision, condition, reason}) => [decision, condition, reason]))"
    )
    assert page.run(script) == expected
    assert {decision for decision, *_ in expected} == {"same", "different", "not sure"}
    assert (
        page.run(f"import('{address}faces.js').then(({{usualRate}}) => usualRate({json.dumps(calibration.plain())}))")
        == 0.01
    )


def test_scores_of_the_detector_equal_python() -> None:
    script = (browser_page.PAGE / "faces.js").read_text(encoding="utf-8")
    found = (
        re.search(r"each\.score >= ([\d.]+)\)", script),
        *re.finditer(r'"(?:refinement|output)", \d+, ([\d.]+)', script),
    )
    assert [float(match[1]) for match in found if match] == [
        mtcnn._SURE_SCORE,
        mtcnn._REFINEMENT_SCORE,
        mtcnn._OUTPUT_SCORE,
    ]


@pytest.mark.parametrize("changed", [None, "weights_sha256", "detector_sha256", "deocc_version"])
def test_export_is_made_again_for_other_weights(
    changed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_page, "KEPT", tmp_path)
    config = json.loads((PRETRAINED / "config.json").read_text(encoding="utf-8"))
    kept = {**config, "deocc_version": deocc.__version__, "detector_sha256": checksum(mtcnn.WEIGHTS_FILE)}
    (tmp_path / "model.json").write_text(json.dumps({**kept, **({} if changed is None else {changed: "other"})}))
    assert browser_page._is_current() == (changed is None)


def test_left_out_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser_page, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["browser_page", "--out", str(tmp_path / "site")])
    assert browser_page.main() == 0
    assert capsys.readouterr().out == "the browser page is left out, it lacks model and runtime: npm is not installed\n"


@chromium_only
def test_page_without_model(chromium: Browser) -> None:
    with serving(browser_page.PAGE) as root:
        chromium.open(root, 1280)
        chromium.wait("document.querySelector('#loading.error')")
        assert 'Its files are made by "make docs"' in text(chromium, "#loading")
