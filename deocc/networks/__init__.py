"""Networks: pure `nn.Module`s, tensors in and out."""

from deocc.networks.averaging import WeightAverage
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.discriminator import GlobalLocalDiscriminator, PatchDiscriminator
from deocc.networks.embedders.registry import Embedder, create_embedder, create_teacher, list_embedders
from deocc.networks.embedders.spec import EmbedderSpec
from deocc.networks.generator import Generator, complete, compose
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
    "WeightAverage",
    "complete",
    "compose",
    "create_embedder",
    "create_teacher",
    "list_embedders",
    "widen_stem",
]
