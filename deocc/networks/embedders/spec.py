"""What a recogniser expects at its input."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from deocc.geometry import get_template

Colour = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class EmbedderSpec:
    """A recogniser's crop, colour order and normalisation: (value in 0..255 - mean) / std, channels in the network's own order."""

    template: str
    """Name of a template of `deocc.geometry.TEMPLATES`."""
    size: int
    """Side of the network's input in pixels; the template is scaled to it."""
    mean: Triple
    std: Triple
    color: Colour = "rgb"
    mirror: bool = False
    """In evaluation mode, take the mean of the raw embeddings of a face and of its mirror image, as is usual in tests on LFW. It doubles
    the cost."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        get_template(self.template)
        if self.size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, std positive, got {self.mean} and {self.std}")
        if self.color not in ("rgb", "bgr"):
            raise ValueError(f"color must be 'rgb' or 'bgr', got {self.color!r}")


@dataclass(frozen=True)
class Recogniser:
    """What a builder returns: a network, what it expects, and what is known of its weights."""

    network: nn.Module
    spec: EmbedderSpec
    pretrained: bool
    """Whether weights were loaded; False = random."""
    differentiable: bool = True
