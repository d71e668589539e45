"""The page in a real browser: by mouse and by keyboard, on a desktop and on a phone."""

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from bench.chromium import PROGRAM, Browser, browsing
from tests.commands.demo.server import Server, serving

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
]

_PHOTO = "input[type=file]"
_SHOWN = "document.querySelector('#deocc-result')"
_ERROR = "document.querySelector('#result .deocc-error')"
_ON_PAGE = "document.querySelector('img[src*=\"/file=\"]')"
_FOCUSED = """(() => {
    const focused = document.activeElement, label = focused.labels && focused.labels[0];
    return focused.getAttribute('aria-label') || focused.title || focused.innerText || (label && label.innerText) || '';
})()"""


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model, tmp_path_factory.mktemp("temporary")) as started:
        yield started


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(server: Server, chromium: Browser) -> Browser:
    """A new page in a desktop window."""
    chromium.open(server.address, 1280)
    chromium.wait("document.querySelector('#show') && document.querySelector('input[type=file]')")
    return chromium


def choose(page: Browser, photo: Path) -> None:
    page.upload(_PHOTO, photo)
    page.wait(_ON_PAGE)


def show(page: Browser, until: str) -> None:
    page.run("document.querySelector('#show').click()")
    page.wait(until)


def troubles(page: Browser, server: Server) -> list[str]:
    """Return console errors and requests to other machines."""
    asked = [address for address in page.requests if not address.startswith(("data:", "blob:"))]
    assert asked
    return page.complaints + [
        address for address in asked if urlsplit(address).netloc != urlsplit(server.address).netloc
    ]


def fits(page: Browser) -> bool:
    return bool(page.run("document.documentElement.scrollWidth <= window.innerWidth"))


def test_page_shows_panels_and_people(page: Browser, server: Server, photos: tuple[Path, Path]) -> None:
    choose(page, photos[0])
    show(page, _SHOWN)
    titles = page.run("[...document.querySelectorAll('figcaption strong')].map(title => title.innerText)")
    assert titles == ["Clean", "Masked", "Predicted mask", "Completed", "Attention"]
    assert page.run("[...document.querySelectorAll('#result figure img')].every(image => image.naturalWidth === 64)")
    assert page.run("document.querySelectorAll('.deocc-person img').length") == 5
    assert "Nearest of 40 people" in page.run("document.body.innerText")
    assert fits(page) and troubles(page, server) == []


def test_example_fits_a_phone(page: Browser, server: Server) -> None:
    page.resize(390)
    assert fits(page)
    page.run(
        "[...document.querySelectorAll('button')].find(button => button.innerText.startsWith('Two people')).click()"
    )
    page.wait(_SHOWN)
    assert page.run("document.querySelectorAll('#result .deocc-row:not(.deocc-person)').length") == 3
    assert (
        page.run("document.querySelectorAll('#result section[aria-label=\"The two photos\"] .deocc-mark').length") == 4
    )
    assert page.run("document.querySelector('input[type=radio]:checked').value") == "scarf"
    assert fits(page) and troubles(page, server) == []
    assert page.run(
        "[...document.querySelectorAll('#result *')].every(part => part.getBoundingClientRect().right <= 390)"
    )


def test_error_is_one_line(page: Browser, server: Server, photos: tuple[Path, Path], tmp_path: Path) -> None:
    show(page, _ERROR)
    assert "no photo yet" in page.run(f"{_ERROR}.innerText")
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "wall.png")
    choose(page, tmp_path / "wall.png")
    show(page, f"{_ERROR}.innerText.includes('wall.png')")
    line = page.run(f"{_ERROR}.innerText")
    assert line.startswith("no face found in wall.png") and "\n" not in line
    assert "Traceback" not in page.run("document.body.innerText") and not page.run(_SHOWN)
    assert troubles(page, server) == []


def test_large_photo_is_refused(page: Browser, server: Server, tmp_path: Path) -> None:
    before = server.files()
    (tmp_path / "large.png").write_bytes(bytes(10 * 1024**2 + 1))
    page.upload(_PHOTO, tmp_path / "large.png")
    page.wait("/maximum|too large|exceed/i.test(document.body.innerText)")
    assert "Traceback" not in page.run("document.body.innerText") and server.files() == before


def test_keyboard_reaches_everything(page: Browser, server: Server) -> None:
    reached = []
    for _ in range(30):
        page.press("Tab", 9)
        reached.append(page.run(_FOCUSED))
        if reached[-1] == "Show":
            break
    assert all(reached), f"something without a name has the focus: {reached}"
    assert [name for name in reached if name in {"surgical", "Show"} or name.startswith("Seed")] == [
        "surgical",
        "Seed: another one draws another mask",
        "Show",
    ]
    page.press("Enter", 13, "\r")
    page.wait(_ERROR)
    assert "no photo yet" in page.run(f"{_ERROR}.innerText") and troubles(page, server) == []


def test_ctrl_c_deletes_photos(server: Server) -> None:
    assert server.files(), "photos were there until now"
    assert server.end(signal.SIGINT) == 0
    assert list(server.temporary.glob("deocc-demo-*")) == []
    assert "Traceback" not in "".join(server.output)
