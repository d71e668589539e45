"""Face sets, alignment, and the one LightningDataModule."""

import deocc._torchvision  # noqa: F401  # before Lightning
from deocc.data.ar import ArFaces
from deocc.data.celeba import CelebaFaces
from deocc.data.datamodule import MaskedFaceDataModule
from deocc.data.face_set import FaceSet
from deocc.data.folder import FolderFaces
from deocc.data.identities import shared_people
from deocc.data.insightface_bin import BinFaces
from deocc.data.insightface_rec import RecordFaces
from deocc.data.lfw import LfwFaces
from deocc.data.orl import OrlFaces
from deocc.data.pairs import PairListFaces

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
