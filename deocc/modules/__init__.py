"""The LightningModules: mask prediction, de-occlusion, distillation. They never import data, which they meet in a YAML."""

import deocc._torchvision  # noqa: F401  # before Lightning
from deocc.modules.distillation import DistillationModule
from deocc.modules.inpainting import InpaintingModule
from deocc.modules.segmentation import SegmentationModule

__all__ = ["DistillationModule", "InpaintingModule", "SegmentationModule"]
