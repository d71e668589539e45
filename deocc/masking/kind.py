"""What a kind of occluder is: a name, a place and a painter."""

from collections.abc import Callable
from dataclasses import dataclass

from deocc.masking.canvas import Canvas, Layer


@dataclass(frozen=True)
class Kind:
    """One kind of occluder."""

    name: str
    extent: tuple[float, float, float, float] | None
    """Left, top, right, bottom in face coordinates beyond which nothing is ever painted; None = it may lie anywhere in the image."""
    paint: Callable[[Canvas], Layer]
    """Paints all images of a canvas at once; it must obey the canvas's rule of exact arithmetic."""
