"""The page's server: one process, no word to other machines, and nothing left behind."""

import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from deocc.commands.demo.analysis import Analyst
from deocc.commands.demo.view import error_html, page_style, result_html
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.photos import read_photo

KEPT: Final = 600.0
"""Seconds that a photo is there for another mask or another comparison. OURS."""

_MOST: Final = 20
"""Photos in memory at once, of ten megabytes each at most; then the one that was used the longest ago goes. OURS."""


class PhotoMemory:
    """The bytes of uploaded files.

    Args:
        uploads: the folder that uploads lie in; no other file is read, whatever a client names.
        seconds: how long a photo stays.
    """

    def __init__(self, uploads: Path, seconds: float = KEPT) -> None:
        self._uploads, self._seconds = uploads.resolve(), seconds
        self._photos: dict[Path, tuple[float, bytes]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __len__(self) -> int:
        """How many photos are in memory."""
        return len(self._photos)

    def take(self, named: str) -> bytes:
        """The content of the file that a client names; the file is gone then, and its folder with it.

        Raises:
            FileNotFoundError: no upload of this name is on the disk or in memory.
        """
        path = (self._uploads / named).resolve()
        if not named or not path.is_relative_to(self._uploads):
            raise FileNotFoundError(named)
        with self._lock:
            data = path.read_bytes() if path.is_file() else self._photos[path][1] if path in self._photos else None
            if data is None:
                raise FileNotFoundError(named)
            self._photos.pop(path, None)
            self._photos[path] = time.monotonic(), data  # the latest one comes last
            if len(self._photos) > _MOST:
                del self._photos[next(iter(self._photos))]
            self._forget_later()
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty where another photo lies in it
            if path.parent != self._uploads:
                path.parent.rmdir()
        return data

    def _forget_later(self) -> None:
        if self._timer is None and self._photos:
            self._timer = threading.Timer(self._seconds / 10, self._forget)
            self._timer.daemon = True
            self._timer.start()

    def _forget(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._photos = {
                path: (used, data) for path, (used, data) in self._photos.items() if now - used < self._seconds
            }
            self._timer = None
            self._forget_later()


MOST_BODY: Final = 10 * 2**20 + 2**16
"""Bytes of a request: a file of ten megabytes and the form around it."""

_MOST_STORED: Final = 2**30
"""Bytes that uploads may take on the disk, all together. OURS."""

_POSTED: Final = ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
"""All that the page posts to. Gradio has more, among them requests to other machines and edits of its own source."""

_SHUT: Final = ("/gradio_api/proxy=", "/proxy=")
_POLICY: Final = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
_HEADERS: Final = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


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

    def __init__(self, app: Any, names: Iterable[str], uploads: Path, limit: "RateLimit") -> None:
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
            raise _RefusedError(
                403, f"this page is not called {host[:100]!r}: open it by the address that deocc demo printed"
            )
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
            raise _RefusedError(
                413, f"the request has {int(length):,} bytes, at most {MOST_BODY:,} are allowed: choose a smaller photo"
            )
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
    await send(
        {"type": "http.response.start", "status": status, "headers": [kind, (b"connection", b"close"), *_HEADERS]}
    )
    await send({"type": "http.response.body", "body": line.encode()})


_HARMLESS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
MOST_SEED: Final = 2**31 - 1
_REMEMBERED = 1000

Photo = Mapping[str, Any] | NDArray[np.uint8]


class RateLimit:
    """At most so many answers a client in a span of time.

    Args:
        most: answers.
        seconds: the span.
        clock: what time it is, in seconds.
        what: what is counted, in the plural.
    """

    def __init__(
        self, most: int = 30, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic, what: str = "answers"
    ) -> None:
        self._most, self._seconds, self._clock, self._what = most, seconds, clock, what
        self._times: dict[str, deque[float]] = {}

    def check(self, client: str) -> None:
        """Count one more.

        Raises:
            ValueError: it is one too many; the message says how long to wait.
        """
        now = self._clock()
        times = self._times.pop(client, deque())
        while times and now - times[0] >= self._seconds:
            times.popleft()
        self._times[client] = times  # the latest client comes last, so that the first may be forgotten
        if len(self._times) > _REMEMBERED:
            del self._times[next(iter(self._times))]
        if len(times) >= self._most:
            wait = int(self._seconds - (now - times[0])) + 1
            raise ValueError(
                f"the limit is {self._most} {self._what} in {self._seconds:g} s: wait {wait} s and press the button again"
            )
        times.append(now)


class Answers:
    """Answers the page.

    Args:
        analyst: what analyses faces.
        finder: what finds them.
        limit: how often a client may ask.
        memory: where the photos are that clients name.
    """

    def __init__(self, analyst: Analyst, finder: FaceFinder, limit: RateLimit, memory: PhotoMemory) -> None:
        self._analyst, self._finder, self._limit, self._memory = analyst, finder, limit, memory

    def answer(self, photo: Photo | None, second: Photo | None, kind: str, seed: Any, client: str) -> str:
        """The result as HTML, or the one line that says what is wrong, as HTML too.

        Args:
            photo: an uploaded file, its `path` and the `orig_name` that it had, or pixels (H, W, 3) RGB; None = none was given.
            second: another, to compare with; None = none.
            kind: a kind of mask, or `NO_MASK`.
            seed: of the mask, a whole number from 0 to `MOST_SEED`.
            client: who asks.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                self._limit.check(client)
                face = self._face(photo, "the photo")
                other = None if second is None else self._face(second, "the second photo")
                analysis = self._analyst.analyse(face, kind, _seed(seed), other)
            except _HARMLESS as error:
                return error_html(_line(error))
        return result_html(
            analysis, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        )

    def _face(self, given: Photo | None, default: str) -> PhotoFace:
        if given is None:
            raise ValueError("no photo yet: drop one, choose a file, or take one with the camera")
        if isinstance(given, np.ndarray):
            return self._finder.find(given, default)[0]
        name = str(given.get("orig_name") or default)
        try:
            data = self._memory.take(str(given.get("path") or ""))
        except (OSError, ValueError):  # ValueError: a path that no system takes
            raise ValueError(f"{name} is no longer here, since photos are not kept: choose it again") from None
        return self._finder.find(read_photo(data, name), name)[0]


def _seed(value: Any) -> int:
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SEED or value != int(value):
        raise ValueError(f"the seed is {value}: give a whole number from 0 to {MOST_SEED}")
    return int(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if TYPE_CHECKING:
    import fastapi
    import gradio as gr

LARGEST_UPLOAD: Final = "10mb"
_LAST_PORT = 65535
_CAUTION: Final[dict[str, Any]] = {"proxy_headers": False, "server_header": False, "limit_concurrency": 200}
"""What a client says of itself is not believed, or it could ask by as many names as it likes; more connections at once are refused. A page
keeps one or two open. OURS."""

_PATIENCE = 2  # seconds for open connections at the end: a page keeps one open for as long as it is shown
_FONT, _FONT_MONO = (
    ("system-ui", "sans-serif"),
    ("ui-monospace", "monospace"),
)  # of the machine; Gradio's own would come from the network
_SETTINGS: Final = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",  # would keep photos in the browser
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_MOST_POSTS: Final = 120
"""Requests a minute and client that send anything. To show a photo takes two or three; answers have a limit of their own. OURS."""


@contextmanager
def private_folder() -> Iterator[str]:
    """While this is open, Gradio keeps uploads in a folder that only this user may enter, and tells nobody; then the folder is gone.

    It must be open before Gradio is imported, and until its server has ended. The signals to end and to hang up are a Ctrl-C
    meanwhile: they leave nothing, either.
    """
    temporary = tempfile.TemporaryDirectory(prefix="deocc-demo-")
    with _terminated_as_interrupted(), temporary as folder, _environment({**_SETTINGS, "GRADIO_TEMP_DIR": folder}):
        yield folder


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    signals = [
        getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]  # Windows has no hang-up
    former = {each: signal.signal(each, _interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 = any free one.

    Raises:
        ValueError: there is no such port, it is used already, or there is no such address on this machine.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"--port {port} is no port: choose one from 0 to {_LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host} is no address ({error}): leave it out") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen()
    except OSError as error:
        opened.close()
        raise ValueError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another --port"
        ) from error
    return opened


def address_of(opened: socket.socket) -> str:
    """What to type into a browser."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_app(page: "gr.Blocks", uploads: Path, names: Iterable[str] = ()) -> "fastapi.FastAPI":
    """The page as an application that asks nothing from other machines.

    Args:
        page: the page.
        uploads: the folder that uploads lie in.
        names: what the machine is called, besides its addresses and `localhost`.

    Raises:
        ImportError: the package gradio is not installed.
    """
    import fastapi
    import gradio as gr

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, names=names, uploads=uploads, limit=RateLimit(_MOST_POSTS, what="requests"))
    theme = gr.themes.Default(primary_hue="blue", font=_FONT, font_mono=_FONT_MONO)
    look: dict[str, Any] = {"theme": theme, "css": page_style(), "footer_links": []}
    gr.mount_gradio_app(app, page, "/", max_file_size=LARGEST_UPLOAD, ssr_mode=False, pwa=False, **look)
    page.has_launched = True  # until then Gradio copies any file that a client names; mounting does not set it
    return app


def serve(app: "fastapi.FastAPI", opened: socket.socket) -> None:
    """Serve an application until Ctrl-C."""
    import uvicorn

    class QuietlyEnding(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            logging.getLogger("uvicorn.error").setLevel(
                logging.CRITICAL
            )  # a page that is still shown would be reported with a traceback
            super().handle_exit(sig, frame)

    server = QuietlyEnding(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE, **_CAUTION))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[opened])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
