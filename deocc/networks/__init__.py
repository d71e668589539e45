"""Networks: modules from tensors to tensors."""

from deocc.networks.deoccluder import Deoccluder
from deocc.networks.discriminator import GlobalLocalDiscriminator, PatchDiscriminator
from deocc.networks.embedders.embedder import Embedder, EmbedderSpec
from deocc.networks.embedders.registry import create_embedder, create_teacher, list_embedders
from deocc.networks.generator import Generator, compose
from deocc.networks.segmenter import MaskSegmenter
from deocc.networks.student import Projection, Student, widen_stem

__all__ = [
    "Deoccluder",
    "Embedder",
    "EmbedderSpec",
    "Generator",
    "GlobalLocalDiscriminator",
    "MaskSegmenter",
    "PatchDiscriminator",
    "Projection",
    "Student",
    "compose",
    "create_embedder",
    "create_teacher",
    "list_embedders",
    "widen_stem",
]
