"""Batched, seeded rendering of occluders on faces."""

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.registry import draw_kinds, list_kinds, register_kind
from deocc.masking.renderer import render
from deocc.masking.texture import register_texture

__all__ = ["Canvas", "Kind", "Layer", "draw_kinds", "list_kinds", "register_kind", "register_texture", "render"]
