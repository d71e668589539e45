"""Face sets, alignment, and the one LightningDataModule."""

from deocc.data.ar import ArFaces
from deocc.data.bin_file import BinFaces
from deocc.data.celeba import CelebaFaces
from deocc.data.face_set import FaceSet
from deocc.data.folder import FolderFaces
from deocc.data.lfw import LfwFaces
from deocc.data.masked_faces import MaskedFaceDataModule
from deocc.data.orl import OrlFaces
from deocc.data.overlap import shared_people
from deocc.data.pair_list import PairListFaces
from deocc.data.record_file import RecordFaces

__all__ = [
    "ArFaces",
    "BinFaces",
    "CelebaFaces",
    "FaceSet",
    "FolderFaces",
    "LfwFaces",
    "MaskedFaceDataModule",
    "OrlFaces",
    "PairListFaces",
    "RecordFaces",
    "shared_people",
]
