"""The built-in occluders, one file each. Their order defines their numbers and must not change."""

from deocc.masking.canvas import Kind
from deocc.masking.kinds.blob import BLOB
from deocc.masking.kinds.box import BOX
from deocc.masking.kinds.cloth import CLOTH
from deocc.masking.kinds.hand import HAND
from deocc.masking.kinds.n95 import N95
from deocc.masking.kinds.scarf import SCARF
from deocc.masking.kinds.strokes import STROKES
from deocc.masking.kinds.sunglasses import SUNGLASSES
from deocc.masking.kinds.surgical import SURGICAL

BUILT_IN: tuple[Kind, ...] = (SURGICAL, CLOTH, N95, SCARF, SUNGLASSES, HAND, BOX, STROKES, BLOB)

__all__ = ["BLOB", "BOX", "BUILT_IN", "CLOTH", "HAND", "N95", "SCARF", "STROKES", "SUNGLASSES", "SURGICAL"]
