"""Face sets, alignment, and the one LightningDataModule."""

from deocc.data.face_set import FaceSet
from deocc.data.folder import FolderFaces
from deocc.data.masked_faces import MaskedFaceDataModule
from deocc.data.orl import OrlFaces

__all__ = ["FaceSet", "FolderFaces", "MaskedFaceDataModule", "OrlFaces"]
