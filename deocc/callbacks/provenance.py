"""What the weights of a checkpoint and the figures of a test follow from, as a few hashes and numbers that fit into a checkpoint."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypedDict, cast

import deocc
from deocc.data import FolderFaces, MaskedFaceDataModule
from deocc.data.dataset import FixedFaces
from deocc.data.face_set import FaceSet
from deocc.data.manifest import manifest_hash
from deocc.geometry import TEMPLATES, Template
from deocc.networks import Embedder
from deocc.networks.teacher_fingerprint import teacher_fingerprint

VERSION: Final = 1
"""Raised when a field is added or means something else, so that no field is compared with one of another meaning."""

PACKAGES: Final = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "albumentations",
    "timm",
    "numpy",
    "opencv-python-headless",
)
"""Whose versions can move figures."""

_DIGITS: Final = 16  # hexadecimal, of each hash: enough against chance, short enough to be read


class Fingerprint(TypedDict):
    """What a checkpoint says of itself: plain values, equal on another machine with equal data and packages."""

    version: int
    """`VERSION` of the deocc that wrote it."""
    config: str | None
    """The run's configuration as YAML, without secrets."""
    code: dict[str, str]
    """`version` of deocc and `hash` of its source files."""
    packages: dict[str, str | None]
    """By name; None for one that is not installed under that name."""
    seeds: dict[str, int | None]
    """`seed_everything`, None where nobody set it, and `data`."""
    face_set: str
    """Whose faces: the set's credit line, by which a test on another set is told from one on a set that has changed."""
    training_data: str | None
    """`training_data_hash`."""
    template: dict[str, str | None]
    """Hashes of the `canonical` template and of the `teacher`'s own."""
    size: int
    """Side of the canonical crop in pixels."""
    masks: str | None
    """Hash of the test's mask manifest; None for a set without test images."""
    teacher: str | None
    """Hash of the teacher's weights and of what it expects; None where a stage has none."""
    resumed: list[dict[str, Any]]
    """What differed when the training was resumed and went on all the same (`deocc.callbacks.mismatch.Difference`), oldest first."""


def build(data: MaskedFaceDataModule, teacher: Embedder | None) -> Fingerprint:
    """The fingerprint of the present state; `config` is None, for where a run's configuration lies only its trainer knows.

    It takes less than 0.1 s for the embedded faces. Of a folder of a million faces, names and sizes are read, not pixels.
    """
    return {
        "version": VERSION,
        "config": None,
        "code": {"version": deocc.__version__, "hash": source_hash()},
        "packages": package_versions(),
        "seeds": {"seed_everything": global_seed(), "data": data.seed},
        "face_set": data.face_set.credit,
        "training_data": training_data_hash(data.face_set),
        "template": {"canonical": template_hash(TEMPLATES["canonical"]), "teacher": template_hash(teacher.template) if teacher else None},
        "size": data.size,
        "masks": _masks(data),
        "teacher": teacher_fingerprint(teacher)[:_DIGITS] if teacher else None,
        "resumed": [],
    }


def package_versions() -> dict[str, str | None]:
    """The versions of Python and of `PACKAGES`; None for one that is not installed under its name."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def global_seed() -> int | None:
    """What `seed_everything` was called with, None where it was not."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed is not None else None


def source_hash(package: Path = Path(deocc.__file__).parent) -> str:
    """A hash of the names and contents of the Python files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:_DIGITS]


def template_hash(template: Template) -> str:
    """A hash of the template's size and points."""
    return hashlib.sha256(repr((template.size, template.points)).encode()).hexdigest()[:_DIGITS]


def training_data_hash(face_set: FaceSet) -> str | None:
    """A hash of the training images, people and landmarks, equal wherever the set lies; None where nobody is trained on.

    That of `FaceSet.fingerprint`, but of a folder only names, sizes of files and landmarks are taken: to decode a million images would take
    an hour before the first step. The price: an image that is replaced by one of as many bytes and pixels goes unnoticed.
    """
    if len(face_set.bare("train")) == 0:
        return None
    return _folder_hash(face_set) if isinstance(face_set, FolderFaces) else face_set.fingerprint("train")


def _folder_hash(faces: FolderFaces) -> str:
    """A file's name begins with its person's."""
    indices = faces.indices("train")
    digest = hashlib.sha256(faces.landmarks[indices].round(2).tobytes())
    for index in indices.tolist():
        name = faces.names[index]
        digest.update(f"{name}\0{(faces.root / name).stat().st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_DIGITS]


def _masks(data: MaskedFaceDataModule) -> str | None:
    probes = cast(FixedFaces, data.test_dataloader()[1].dataset)
    return manifest_hash(probes) if len(probes) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
