"""Face sets, alignment, and the one LightningDataModule.

The classes are imported at first use: Lightning and albumentations take seconds, which photo commands need not wait.
"""

import importlib
from typing import TYPE_CHECKING, Any

import deocc._torchvision  # noqa: F401  # before Lightning

if TYPE_CHECKING:
    from deocc.data.ar import ArFaces as ArFaces
    from deocc.data.celeba import CelebaFaces as CelebaFaces
    from deocc.data.datamodule import MaskedFaceDataModule as MaskedFaceDataModule
    from deocc.data.face_set import FaceSet as FaceSet
    from deocc.data.folder import FolderFaces as FolderFaces
    from deocc.data.insightface import BinFaces as BinFaces
    from deocc.data.insightface import RecordFaces as RecordFaces
    from deocc.data.lfw import LfwFaces as LfwFaces
    from deocc.data.orl import OrlFaces as OrlFaces
    from deocc.data.pairs import PairListFaces as PairListFaces

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
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
