"""Renders an analysis as HTML with embedded pictures, so that no picture is written to disk."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from deocc.commands.demo.analysis import Analysis

_DECISIONS = {"same": "Same person", "different": "Different people", "not sure": "Not sure"}


def result_html(analysis: Analysis, notes: Sequence[str] = ()) -> str:
    """Return the analysis as HTML, with the notes above it."""
    return _render("result.html.j2", analysis=analysis, notes=notes)


def error_html(line: str) -> str:
    """Return an error message as HTML that screen readers announce at once."""
    return _render("error.html.j2", line=line)


def intro_html(has_gallery: bool) -> str:
    """Return the introduction: what the page does, what happens to a photo, and how to install a missing gallery."""
    return _render("intro.html.j2", has_gallery=has_gallery)


def page_style() -> str:
    """Return the CSS of the page."""
    return _read("page.css")


def _render(name: str, **values: object) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(uri=_data_uri, position=_position)
    return environment.from_string(_read(name)).render(decisions=_DECISIONS, **values)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data_uri(picture: NDArray[np.uint8]) -> str:
    """Encode a picture (H, W, 3) RGB as a data URI."""
    content = BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _position(similarity: float) -> str:
    """Return the CSS position of a similarity on a bar from 0 to 1; negative similarities are at 0."""
    return f"{min(max(similarity, 0.0), 1.0):.1%}"
