"""The two LightningModules. They never import data: they meet it in a YAML."""

from deocc.modules.distillation import DistillationModule
from deocc.modules.inpainting import InpaintingModule

__all__ = ["DistillationModule", "InpaintingModule"]
