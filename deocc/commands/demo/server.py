"""The web server of the demo: loopback by default, limited uploads, a private folder that is deleted at the end."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from deocc.commands.demo.view import page_style

if TYPE_CHECKING:
    import fastapi
    import gradio as gr

MAX_UPLOAD: Final = "10mb"
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1", "[::1]")
_LAST_PORT: Final = 65535
_SHUTDOWN_SECONDS: Final = 2  # a page keeps a connection open as long as it is shown
_GRADIO_ENVIRONMENT: Final = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",  # would keep photos in the browser
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def private_folder() -> Iterator[str]:
    """Let Gradio store uploads in a temporary folder that only this user can read, and turn its telemetry off.

    Enter before Gradio is imported and leave after its server has ended. Meanwhile SIGTERM and SIGHUP raise
    KeyboardInterrupt, as Ctrl-C does, so that the folder is always deleted.
    """
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # no SIGHUP on Windows
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    environment = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory(prefix="deocc-demo-") as folder:
            os.environ.update(_GRADIO_ENVIRONMENT, GRADIO_TEMP_DIR=folder)
            yield folder
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def forget_proxies() -> None:
    """Remove proxies from the environment: the page needs none, and Gradio does not start with a SOCKS proxy."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 chooses a free one.

    Raises:
        ValueError: the port is out of range or in use, or this machine does not have the address.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"--port {port} is not a port: choose one from 0 to {_LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host} is not an address ({error}): leave it out") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ValueError(f"cannot listen at {host}, port {port} ({reason}): choose another --port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL to open in a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_app(page: "gr.Blocks", local_only: bool = True, hosts: Sequence[str] = ()) -> "fastapi.FastAPI":
    """Mount the page in an application that limits uploads and loads nothing from other machines.

    Args:
        page: the page.
        local_only: accept only requests to a loopback address or `localhost`. This stops DNS rebinding, where another
            site's host name resolves to this machine so that its page can read this one.
        hosts: further host names to accept, such as that of a reverse proxy.

    Raises:
        ImportError: gradio is not installed.
    """
    import fastapi
    import gradio as gr
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, *hosts] if local_only else ["*"])
    theme = gr.themes.Default(  # Gradio's default fonts would be loaded from the network
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    gr.mount_gradio_app(
        app,
        page,
        "/",
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        theme=theme,
        css=page_style(),
        footer_links=[],
    )
    page.has_launched = True  # before this, Gradio reads any file that a client names; mounting does not set it
    return app


def serve(app: "fastapi.FastAPI", listener: socket.socket) -> None:
    """Serve an application until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="critical",  # or pages that are still open at the end are reported with a traceback
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        proxy_headers=False,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
