"""The built-in occluders. Their order defines their numbers and must not change."""

from deocc.masking.canvas import Kind
from deocc.masking.kinds.face_masks import CLOTH, N95, SCARF, SURGICAL
from deocc.masking.kinds.freeform import BLOB, BOX, STROKES
from deocc.masking.kinds.hand import HAND
from deocc.masking.kinds.sunglasses import SUNGLASSES

BUILT_IN: tuple[Kind, ...] = (SURGICAL, CLOTH, N95, SCARF, SUNGLASSES, HAND, BOX, STROKES, BLOB)
