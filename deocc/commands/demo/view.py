"""An analysis as HTML. Its pictures lie within it, so that none of them is ever written to disk."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from deocc.commands.demo.analysis import Analysis

_WORDS = {"same": "Same person", "different": "Different people", "not sure": "Not sure"}


def result_html(analysis: Analysis, notes: Sequence[str] = ()) -> str:
    """The result.

    Args:
        analysis: what to show.
        notes: lines above it, such as a detector's warning.
    """
    return _render("result.html.j2", analysis=analysis, notes=notes)


def error_html(line: str) -> str:
    """One line that says what is wrong; screen readers read it at once."""
    return _render("error.html.j2", line=line)


def intro_html(identifies: bool) -> str:
    """What the page does and what becomes of a photo; and what is missing where nobody can be identified."""
    return _render("intro.html.j2", identifies=identifies)


def page_style() -> str:
    """The page's own CSS."""
    return _source("page.css")


def _render(name: str, **values: object) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(uri=_uri, place=_place)
    return environment.from_string(_source(name)).render(words=_WORDS, **values)


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _uri(picture: NDArray[np.uint8]) -> str:
    """A picture, (H, W, 3) RGB, as the address of itself."""
    content = BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _place(similarity: float) -> str:
    """Where a similarity lies on a bar that begins at 0, as CSS takes it; negative ones lie at its beginning."""
    return f"{min(max(similarity, 0.0), 1.0):.1%}"
