"""`deocc identify GALLERY PHOTOS...`: who of a gallery is in photos, or nobody of it."""

from deocc.apps.identify.command import main
from deocc.apps.identify.decision import Limit, limit_for
from deocc.apps.identify.gallery import Gallery, GalleryFace, read_gallery
from deocc.apps.identify.search import Match, PersonIndex, list_indexes

__all__ = ["Gallery", "GalleryFace", "Limit", "Match", "PersonIndex", "limit_for", "list_indexes", "main", "read_gallery"]
