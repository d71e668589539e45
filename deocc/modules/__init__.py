"""LightningModules for mask prediction, de-occlusion and distillation. They meet the data modules only in a YAML."""

import deocc._torchvision  # noqa: F401  # before Lightning
from deocc.modules.distillation import DistillationModule
from deocc.modules.inpainting import InpaintingModule
from deocc.modules.segmentation import SegmentationModule

__all__ = ["DistillationModule", "InpaintingModule", "SegmentationModule"]
