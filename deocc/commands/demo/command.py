"""Command line of `deocc demo`."""

import importlib.util
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from deocc.commands.arguments import add_model_argument, load_model
from deocc.commands.demo.analysis import Analyst, OrlGallery
from deocc.commands.demo.page import Answers, build_page
from deocc.commands.demo.server import address_of, forget_proxies, listen, make_app, private_folder, serve
from deocc.detection import list_detectors
from deocc.inference.faces import DEFAULT_DETECTOR, FaceFinder
from deocc.inference.pipeline import Pipeline
from deocc.messages import ArgumentParser, say

_HOST, _PORT = "127.0.0.1", 7860


def main(argv: Sequence[str]) -> int:
    """Run `deocc demo`: serve the page until Ctrl-C, without network access, and delete all photos at the end.

    Args:
        argv: arguments after `deocc demo`; see `deocc demo --help`.

    Returns:
        0 after Ctrl-C.

    Raises:
        ValueError: unknown argument or address, port in use, or damaged model.
        FileNotFoundError: the model or a weights file does not exist.
        ImportError: gradio, or a package that the model or the detector needs, is not installed.
        KeyboardInterrupt: Ctrl-C before the page is served.
    """
    arguments = _parser().parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('deocc demo needs the package gradio: pip install "deocc[web-demo]"')
    with private_folder() as uploads, listen(arguments.host, arguments.port) as listener:
        pipeline = load_model(arguments)
        finder = FaceFinder(pipeline.size, arguments.detector, arguments.detector_weights)
        gallery = _load_gallery(pipeline)
        forget_proxies()  # after a model on the hub was loaded; `private_folder` restores them
        page = build_page(Answers(Analyst(pipeline, gallery), finder, Path(uploads)), gallery)
        is_local = is_loopback(listener.getsockname()[0])
        if not is_local:
            say(
                f"warning: --host {arguments.host} lets other machines in; there is no password, "
                "and photos travel unencrypted"
            )
        print(f"deocc demo: {address_of(listener)} (Ctrl-C ends it)", flush=True)
        serve(make_app(page, local_only=is_local, hosts=arguments.allow_host), listener)
    return 0


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an IP address."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _parser() -> ArgumentParser:
    description = "Show on a local web page how a photo is masked, completed, compared and identified."
    parser = ArgumentParser("deocc demo", description=description)
    add_model_argument(parser)
    parser.add_argument("--host", default=_HOST, help=f"address to listen at; {_HOST} admits this machine only")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which a reverse proxy serves the page; may be repeated",
    )
    parser.add_argument("--port", type=int, default=_PORT, help=f"default: {_PORT}; 0 = any free one")
    parser.add_argument("--detector", choices=list_detectors(), help=f"default: {DEFAULT_DETECTOR}")
    parser.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")
    return parser


def _load_gallery(pipeline: Pipeline) -> OrlGallery | None:
    try:
        return OrlGallery(pipeline)
    except FileNotFoundError as error:
        say(f"no identification and no examples: {error}")
        return None
