"""`deocc demo`: a local web page that masks, completes, compares and identifies a face.

The server listens on this machine by default, limits uploads, and keeps them in a private folder that is deleted at the
end. Gradio is imported only after that folder was chosen.
"""

import html
import importlib.util
import ipaddress
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deocc.commands.arguments import PARSERS
from deocc.commands.demo_analysis import EXAMPLES, NO_MASK, Analyst, OrlGallery, read_asset, render_html
from deocc.commands.model import load_model
from deocc.inference.batch import RECOVERABLE
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.photos import read_photo
from deocc.masking import list_kinds
from deocc.messages import one_line, say

if TYPE_CHECKING:
    import fastapi
    import gradio as gr

MAX_SEED: Final = 2**31 - 1
_MAX_UPLOAD: Final = "10mb"
_MAX_WAITING: Final = 20  # requests for the model; more are refused
_KEEP_SECONDS: Final = 600  # after which an uploaded photo is deleted
_SWEEP_SECONDS: Final = 30  # between Gradio's searches for such photos
_GRADIO_ENVIRONMENT: Final = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",  # would keep photos in the browser
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C, without network access, delete all photos at the end, and return 0."""
    arguments = PARSERS["demo"]().parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('deocc demo needs the package gradio: pip install "deocc[web-demo]"')
    with private_folder() as uploads, listen(arguments.host, arguments.port) as listener:
        pipeline = load_model(arguments)
        finder = pipeline.finder = FaceFinder(pipeline.size, arguments.detector, arguments.detector_weights)
        gallery = None
        try:
            gallery = OrlGallery(pipeline)
        except FileNotFoundError as error:
            say(f"no identification and no examples: {error}")
        forget_proxies()  # after a model on the hub was loaded; `private_folder` restores them
        page = build_page(Answers(Analyst(pipeline, gallery), finder, Path(uploads)), gallery)
        host, port = listener.getsockname()[:2]
        is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        if not is_local:
            say(
                f"warning: --host {arguments.host} lets other machines in; there is no password, "
                "and photos travel unencrypted"
            )
        print(f"deocc demo: http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
        serve(make_app(page, local_only=is_local, hosts=arguments.allow_host), listener)
    return 0


@dataclass(frozen=True)
class Answers:
    """Turns the page's inputs into HTML."""

    analyst: Analyst
    finder: FaceFinder
    uploads: Path  # only files below this folder are read

    def answer(
        self, photo: Mapping[str, Any] | None, second: Mapping[str, Any] | None, kind: str, seed: float | None
    ) -> str:
        """Return the result, or the message of an error, as HTML.

        Photos are given by `path` and `orig_name` of uploaded files, as Gradio sends them; the second is compared.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                if photo is None:
                    raise ValueError("no photo yet: drop one, choose a file, or take one with the camera")
                face = self._find_face(photo, "the photo")
                second_face = None if second is None else self._find_face(second, "the second photo")
                if not isinstance(seed, int | float) or not 0 <= seed <= MAX_SEED or seed != int(seed):
                    raise ValueError(f"the seed is {seed}: give a whole number from 0 to {MAX_SEED}")
                analysis = self.analyst.analyse(face, kind, int(seed), second_face)
            except RECOVERABLE as error:
                line = html.escape(one_line(error) or type(error).__name__)
                return f'<p class="deocc-error" role="alert">{line}</p>'  # screen readers announce it at once
        notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        return render_html("demo_result.html.j2", analysis=analysis, notes=notes)

    def _find_face(self, photo: Mapping[str, Any], default_name: str) -> PhotoFace:
        name = str(photo.get("orig_name") or default_name)
        try:
            path = (self.uploads / str(photo.get("path") or "")).resolve()
            if not path.is_relative_to(self.uploads.resolve()):  # the path comes from the browser
                raise FileNotFoundError(path)
            content = path.read_bytes()
        except (OSError, ValueError):
            raise ValueError(f"{name} is no longer here, since photos are not kept: choose it again") from None
        return self.finder.find(read_photo(content, name), name)[0]


def build_page(answers: Answers, gallery: OrlGallery | None) -> "gr.Blocks":
    """Return the page, not yet served; without a gallery there are no example photos."""
    import gradio as gr

    kinds = list_kinds()
    with gr.Blocks(title="deocc demo", analytics_enabled=False, delete_cache=(_SWEEP_SECONDS, _KEEP_SECONDS)) as page:
        gr.HTML(render_html("demo_intro.html.j2", has_gallery=gallery is not None))
        with gr.Row():
            photo, second = (
                gr.Image(
                    label=label,
                    sources=["upload", "webcam"],
                    type="filepath",
                    format="png",
                    height=260,
                    buttons=[],
                    placeholder="Drop a photo here, or press to choose a file",
                )
                for label in ("Photo", "Second photo (optional)")
            )
        label = "Mask to draw on the photo (none: it may be masked already)"
        kind = gr.Radio([NO_MASK, *kinds], value=kinds[0], label=label)
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed: another one draws another mask", precision=0, minimum=0, maximum=MAX_SEED)
            button = gr.Button("Show", variant="primary", elem_id="show")
        example_buttons = {}
        if gallery is not None:
            gr.HTML('<p class="deocc deocc-small">Examples: ORL faces of the validation people of the usual split.</p>')
            with gr.Row():
                example_buttons = {title: gr.Button(title, size="sm") for title in EXAMPLES}
        result = gr.HTML("", elem_id="result")

        inputs = [photo, second, kind, seed]
        private: dict[str, Any] = {"api_visibility": "private"}
        show: dict[str, Any] = {
            "fn": answers.answer,
            "inputs": inputs,
            "outputs": result,
            "preprocess": False,  # `Answers` reads the file itself, for its own error messages
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "scroll_to_output": True,
            **private,
        }
        button.click(**show)
        if gallery is not None:
            for title, example_button in example_buttons.items():
                example_button.click(partial(gallery.example_inputs, title), None, inputs, **private).then(**show)
    page.queue(max_size=_MAX_WAITING, api_open=False)
    return page  # type: ignore[no-any-return]


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
    """Return a socket that listens at an address; port 0 chooses a free one."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} is not a port: choose one from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host} is not an address ({error}): leave it out") from error
    try:
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" also accepts IPv4
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(f"cannot listen at {host}, port {port} ({reason}): choose another --port") from error


def make_app(page: "gr.Blocks", local_only: bool = True, hosts: Sequence[str] = ()) -> "fastapi.FastAPI":
    """Mount the page in an application that limits uploads and loads nothing from other machines.

    With `local_only` it accepts only requests to a loopback address, `localhost` or one of `hosts`, such as that of a
    reverse proxy. This stops DNS rebinding, where another site's host name resolves to this machine so that its page
    can read this one.
    """
    import fastapi
    import gradio as gr
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    local = ["localhost", "127.0.0.1", "::1", "[::1]", *hosts]
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=local if local_only else ["*"])
    theme = gr.themes.Default(  # Gradio's default fonts would be loaded from the network
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    css = read_asset("demo_page.css")
    gr.mount_gradio_app(
        app, page, "/", max_file_size=_MAX_UPLOAD, ssr_mode=False, pwa=False, theme=theme, css=css, footer_links=[]
    )
    page.has_launched = True  # before this, Gradio reads any file that a client names; mounting does not set it
    return app


def serve(app: "fastapi.FastAPI", listener: socket.socket) -> None:
    """Serve an application until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="critical",  # or pages that are still open at the end are reported with a traceback
        timeout_graceful_shutdown=2,  # seconds: a page keeps a connection open as long as it is shown
        proxy_headers=False,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
