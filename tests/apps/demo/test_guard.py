"""Who is not let through to the page, and in which words."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deocc.commands.demo import server as guard
from deocc.commands.demo.server import MOST_BODY, Guard, RateLimit

_JOIN = "/gradio_api/queue/join"


class Page:
    """Answers 200, and counts."""

    asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"page"})


def ask(
    app: Guard, method: str = "GET", path: str = "/", client: str = "192.0.2.7", **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers; `host` is 127.0.0.1:7860 unless given, `_` stands for `-`."""
    sent: list[Any] = []
    given = {"host": "127.0.0.1:7860", **({"content_length": "10"} if method == "POST" else {}), **headers}
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items() if value]

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(
        app({"type": "http", "method": method, "path": path, "headers": fields, "client": (client, 1)}, None, send)
    )
    return (
        sent[0]["status"],
        sent[1]["body"].decode(),
        {name.decode(): value.decode() for name, value in sent[0]["headers"]},
    )


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def app(page: Page, tmp_path: Path) -> Guard:
    return Guard(page, ["Studio.example"], tmp_path, RateLimit(3, 60, lambda: 0.0, "requests"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "192.168.1.4", "studio.example:80"]
)
def test_addresses_and_its_own_names_are_answered(app: Guard, host: str) -> None:
    status, body, headers = ask(app, host=host)
    assert (status, body) == (200, "page")
    assert "default-src 'self'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "::1]:x", "evil@x:1"]
)
def test_a_name_that_another_points_at_this_machine_is_not(app: Guard, page: Page, host: str) -> None:
    status, body, _ = ask(app, host=host)
    assert status == 403 and "open it by the address that deocc demo printed" in body and page.asked == 0


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:80", "http://127.0.0.1:7860.evil.example"]
)
def test_what_another_sites_page_posts_is_refused(app: Guard, page: Page, origin: str) -> None:
    assert ask(app, "POST", _JOIN, origin="http://127.0.0.1:7860")[0] == 200
    assert ask(app, "POST", _JOIN, origin=origin)[:2] == (
        403,
        "another site's page may not ask here: open this one by itself",
    )
    assert page.asked == 1


def test_a_client_that_posts_too_often_is_told_how_long_to_wait_and_others_are_not(app: Guard) -> None:
    assert [ask(app, "POST", _JOIN)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert "the limit is 3 requests in 60 s: wait 61 s" in ask(app, "POST", _JOIN)[1]
    assert ask(app, "POST", _JOIN, client="192.0.2.8")[0] == 200 and ask(app)[0] == 200


def test_a_body_must_tell_its_length_and_be_of_one_photo(app: Guard, page: Page) -> None:
    assert ask(app, "POST", "/gradio_api/upload", content_length="")[0] == 411
    assert ask(app, "POST", "/gradio_api/upload", content_length="-1")[0] == 411
    assert ask(app, "POST", "/gradio_api/upload", content_length=str(MOST_BODY + 1))[0] == 413
    assert page.asked == 0 and ask(app, "POST", "/gradio_api/upload", content_length=str(MOST_BODY))[0] == 200


@pytest.mark.parametrize(
    "path", ["/gradio_api/vibe-edit", "/gradio_api/run/predict", "/gradio_api/upload/../x", "/run-history/connect"]
)
def test_only_what_the_page_needs_may_be_posted(app: Guard, page: Page, path: str) -> None:
    assert ask(app, "POST", path)[0] == 404 and page.asked == 0


def test_requests_to_other_machines_and_other_methods_are_refused(app: Guard, page: Page) -> None:
    assert ask(app, "GET", "/gradio_api/proxy=http://192.0.2.1")[0] == 404
    assert ask(app, "PUT", _JOIN)[0] == ask(app, "OPTIONS")[0] == 405
    assert page.asked == 0


def test_uploads_that_fill_the_disk_are_refused(app: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MOST_STORED", 1000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(bytes(5000))
    status, body, _ = ask(app, "POST", "/gradio_api/upload")
    assert status == 507 and "try again in ten minutes" in body


def test_no_websocket_is_opened_and_the_servers_own_messages_pass(app: Guard, page: Page) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close"}] and page.asked == 0
    asyncio.run(app({"type": "lifespan"}, None, send))
    assert page.asked == 1
