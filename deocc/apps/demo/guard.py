"""What stands before the page: who may ask, what for, how much and how often. Whoever may not gets one line that says why."""

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from deocc.apps.demo.answering import RateLimit

MOST_BODY: Final = 10 * 2**20 + 2**16
"""Bytes of a request: a file of ten megabytes and the form around it."""

_MOST_STORED: Final = 2**30
"""Bytes that uploads may take on the disk, all together. OURS."""

_POSTED: Final = ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
"""All that the page posts to. Gradio has more, among them requests to other machines and edits of its own source."""

_SHUT: Final = ("/gradio_api/proxy=", "/proxy=")
_POLICY: Final = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
_HEADERS: Final = [(b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class _RefusedError(Exception):
    """Status and line of an answer."""


class Guard:
    """A layer of an ASGI application.

    A page of another site may have its own name point at this machine (DNS rebinding): a request must therefore call it by an address, by
    `localhost`, or by a name that it was told. What is posted must come from the page itself, and tell its length before.

    Args:
        app: what it stands before.
        names: what the machine is called besides.
        uploads: the folder that uploads lie in.
        limit: how often a client may post.
    """

    def __init__(self, app: Any, names: Iterable[str], uploads: Path, limit: RateLimit) -> None:
        self._app, self._uploads, self._limit = app, uploads, limit
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":  # the page opens none
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except _RefusedError as error:
            await _answer(send, *error.args)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Any) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_called(host):
            raise _RefusedError(403, f"this page is not called {host[:100]!r}: open it by the address that deocc demo printed")
        if scope["path"].startswith(_SHUT):
            raise _RefusedError(404, "there is no such page")
        if scope["method"] == "POST":
            self._check_posted(scope, headers, host)
        elif scope["method"] not in ("GET", "HEAD"):
            raise _RefusedError(405, "the page is asked by GET and POST alone")

    def _check_posted(self, scope: Any, headers: dict[str, str], host: str) -> None:
        if scope["path"].rstrip("/") not in _POSTED:
            raise _RefusedError(404, "there is no such page")
        if headers.get("origin", f"http://{host}").partition("://")[2] != host:
            raise _RefusedError(403, "another site's page may not ask here: open this one by itself")
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise _RefusedError(411, "the request does not tell its length")
        if int(length) > MOST_BODY:
            raise _RefusedError(413, f"the request has {int(length):,} bytes, at most {MOST_BODY:,} are allowed: choose a smaller photo")
        try:
            self._limit.check(scope["client"][0] if scope["client"] else "")
        except ValueError as error:
            raise _RefusedError(429, str(error)) from None
        if _stored(self._uploads) > _MOST_STORED:
            raise _RefusedError(507, "too many photos wait to be shown: try again in ten minutes")

    def _is_called(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _stored(folder: Path) -> int:
    """Bytes of the files in a folder; some may go meanwhile."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


async def _answer(send: Any, status: int, line: str) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, (b"connection", b"close"), *_HEADERS]})
    await send({"type": "http.response.body", "body": line.encode()})
