"""The page's server: one process, no word to other machines, and nothing left behind."""

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from deocc.apps.demo.answering import RateLimit
from deocc.apps.demo.guard import Guard
from deocc.apps.demo.view import page_style

if TYPE_CHECKING:
    import fastapi
    import gradio as gr

LARGEST_UPLOAD: Final = "10mb"
_LAST_PORT = 65535
_CAUTION: Final[dict[str, Any]] = {"proxy_headers": False, "server_header": False, "limit_concurrency": 200}
"""What a client says of itself is not believed, or it could ask by as many names as it likes; more connections at once are refused. A page
keeps one or two open. OURS."""

_PATIENCE = 2  # seconds for open connections at the end: a page keeps one open for as long as it is shown
_FONT, _FONT_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the machine; Gradio's own would come from the network
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
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no hang-up
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
        raise ValueError(f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another --port") from error
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
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a page that is still shown would be reported with a traceback
            super().handle_exit(sig, frame)

    server = QuietlyEnding(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE, **_CAUTION))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[opened])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
