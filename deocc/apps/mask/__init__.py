"""`deocc mask`: occluders on the faces of ordinary photos, in full resolution, with the binary masks and a row for every input."""

from deocc.apps.mask.command import main
from deocc.apps.mask.painting import MaskedPhoto, mask_photo

__all__ = ["MaskedPhoto", "main", "mask_photo"]
