"""Command line of `deocc demo`."""

import importlib.util
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from deocc.commands.arguments import demo_parser
from deocc.commands.demo.analysis import Analyst, OrlGallery
from deocc.commands.demo.page import Answers, build_page
from deocc.commands.demo.server import address_of, forget_proxies, listen, make_app, private_folder, serve
from deocc.commands.model import load_model
from deocc.inference.faces import FaceFinder
from deocc.inference.pipeline import Pipeline
from deocc.messages import say


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
    arguments = demo_parser().parse_args(argv)
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


def _load_gallery(pipeline: Pipeline) -> OrlGallery | None:
    try:
        return OrlGallery(pipeline)
    except FileNotFoundError as error:
        say(f"no identification and no examples: {error}")
        return None
