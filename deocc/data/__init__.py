"""Face sets, alignment, and the one LightningDataModule.

The classes are imported at first use: Lightning and albumentations take seconds, which photo commands need not wait.
"""

import importlib
from typing import TYPE_CHECKING, Any

import deocc._torchvision  # noqa: F401  # before Lightning

if TYPE_CHECKING:
    from deocc.data.ar import ArFaces
    from deocc.data.celeba import CelebaFaces
    from deocc.data.datamodule import MaskedFaceDataModule
    from deocc.data.face_set import FaceSet, shared_people
    from deocc.data.folder import FolderFaces
    from deocc.data.insightface import BinFaces, RecordFaces
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
_MODULES = {
    "ArFaces": "ar",
    "BinFaces": "insightface",
    "CelebaFaces": "celeba",
    "FaceSet": "face_set",
    "FolderFaces": "folder",
    "LfwFaces": "lfw",
    "MaskedFaceDataModule": "datamodule",
    "OrlFaces": "orl",
    "PairListFaces": "pairs",
    "RecordFaces": "insightface",
    "shared_people": "face_set",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
