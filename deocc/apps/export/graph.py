"""What the formats have in common: an exported network that becomes the bytes of a file, and bytes that can be run again."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from torch import Tensor

METADATA: Final = "deocc.json"
"""The name under which a file holds its description, JSON: an entry of an ONNX file's metadata, an extra file of torch's formats."""


class Outputs(NamedTuple):
    """Of B faces, by the names that the graph's outputs have."""

    completed_face: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    mask: Tensor
    """(B, 1, S, S), 1 = covered."""
    embedding: Tensor
    """(B, D) unit vectors."""
    covered: Tensor
    """(B,) in [0, 1], the covered share of the face, by which a pair's threshold is chosen."""


Run = Callable[[Tensor], Outputs]
"""Faces (B, 3, S, S) in [-1, 1], any B -> the outputs."""


class Graph(Protocol):
    """An exported network."""

    def content(self, metadata: str) -> bytes:
        """The file, with this description in it."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep back what exporters warn of, log and print: tracing notes on shapes that are constant here, and news of their own plans."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
