"""The command: load the model, make the page, and serve it."""

import argparse
import importlib.util
import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deocc.commands.arguments import add_model_argument, load_model
from deocc.commands.demo.analysis import Analyst, OrlGallery
from deocc.commands.demo.page import build_page
from deocc.commands.demo.server import (
    Answers,
    PhotoMemory,
    RateLimit,
    address_of,
    listen,
    make_app,
    private_folder,
    serve,
)
from deocc.detection import list_detectors
from deocc.inference.faces import DEFAULT_DETECTOR, FaceFinder
from deocc.inference.pipeline import Pipeline

_HOST, _PORT = "127.0.0.1", 7860


def main(words: Sequence[str]) -> int:
    """Run `deocc demo` with these words; `deocc demo --help` lists them.

    The page is served until Ctrl-C. It needs no network, and no photo stays on disk.

    Returns:
        0, after Ctrl-C.

    Raises:
        ValueError: a word or an address that does not exist, a port that is used, or a model that is damaged.
        FileNotFoundError: no such model, or no such weights file.
        ImportError: the package gradio, or one that the model or the detector needs, is not installed.
        KeyboardInterrupt: after Ctrl-C before the page is served.
    """
    chosen = _parser().parse_args(words)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('deocc demo needs the package gradio: pip install "deocc[demo-web]"')
    with private_folder() as uploads, listen(chosen.host, chosen.port) as opened:
        pipeline = load_model(chosen)
        finder = FaceFinder(pipeline.size, chosen.detector, chosen.detector_weights)
        gallery = _gallery(pipeline)
        page = build_page(Answers(Analyst(pipeline, gallery), finder, RateLimit(), PhotoMemory(Path(uploads))), gallery)
        if not _is_loopback(opened.getsockname()[0]):
            _say(
                f"warning: --host {chosen.host} lets other machines in; there is no password, and photos travel unencrypted"
            )
        print(f"deocc demo: {address_of(opened)} (Ctrl-C ends it)", flush=True)
        serve(make_app(page, Path(uploads), _names(chosen.host, opened.getsockname()[0])), opened)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    what = "Show on a local web page how a photo is masked, completed, compared and identified."
    parser = _Parser(prog="deocc demo", description=what, allow_abbrev=False)
    add_model_argument(parser)
    parser.add_argument(
        "--host", default=_HOST, help=f"address to listen at; another than {_HOST} lets other machines in"
    )
    parser.add_argument("--port", type=int, default=_PORT, help=f"default: {_PORT}; 0 = any free one")
    parser.add_argument("--detector", choices=list_detectors(), help=f"default: {DEFAULT_DETECTOR}")
    parser.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")
    return parser


def _gallery(pipeline: Pipeline) -> OrlGallery | None:
    try:
        return OrlGallery(pipeline)
    except FileNotFoundError as error:
        _say(f"no identification and no examples: {error}")
        return None


def _names(host: str, address: str) -> list[str]:
    """What requests may call this machine: the name given to --host and, where other machines are let in, the machine's own."""
    return [host] if _is_loopback(address) else [host, socket.gethostname(), socket.getfqdn()]


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _say(line: str) -> None:
    print(f"deocc: {line}", file=sys.stderr)
