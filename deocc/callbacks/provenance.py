"""A checkpoint says what it follows from, and whoever loads it is told where that is not what is at hand."""

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

import pytorch_lightning as pl
import yaml

import deocc
from deocc import runs
from deocc.callbacks.dashboards import without_secrets
from deocc.data import FolderFaces, MaskedFaceDataModule
from deocc.data.datamodule import manifest_hash
from deocc.data.dataset import FixedFaces
from deocc.data.face_set import FaceSet
from deocc.geometry import TEMPLATES, Template
from deocc.networks import Embedder
from deocc.networks.embedders.registry import teacher_fingerprint

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
        "template": {
            "canonical": template_hash(TEMPLATES["canonical"]),
            "teacher": template_hash(teacher.template) if teacher else None,
        },
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


Severity = Literal["refuse", "warn"]
Action = Literal["fit", "validate", "test", "predict"]
"""What the checkpoint is loaded for, in Lightning's words; "fit" resumes a training."""

_RESUMING: Final[dict[str, Severity]] = {
    "teacher": "refuse",
    "template": "refuse",
    "size": "refuse",
    "training_data": "refuse",
    "seeds": "refuse",
    "masks": "warn",
    "code": "warn",
    "packages": "warn",
}
# An evaluation draws nothing, so seeds do not matter to it.
_EVALUATING: Final[dict[str, Severity]] = {name: grade for name, grade in _RESUMING.items() if name != "seeds"} | {
    "training_data": "warn"
}

_TITLES: Final = {
    "template": "alignment template",
    "size": "crop size",
    "training_data": "training data",
    "masks": "evaluation masks",
}
_REMEDIES: Final = {
    "teacher": "give the teacher that it was trained with",
    "template": "use the deocc and the teacher_options that it was trained with",
    "size": "set data.size as it was",
    "training_data": "give the data that it was trained on, or start a new run",
    "seeds": "set seed_everything and data.seed as they were, or start a new run",
}
_MEANINGS: Final = {
    "fingerprint": "it was written by another deocc, so whether it fits is not known",
    "teacher": "embeddings mean something else than in training",
    "template": "embeddings mean something else than in training",
    "size": "embeddings mean something else than in training",
    "training_data": "these are other images, people or splits than it was trained on",
    "seeds": "it goes on as another training",
    "masks": "figures cannot be compared with those under the run's own masks",
    "code": "another deocc may give other figures",
    "packages": "other versions may give other figures",
}


@dataclass(frozen=True)
class Difference:
    """One value that is not what the checkpoint says."""

    field: str
    """A key of `Fingerprint`, with a dot and a key of its own where it has several values: "packages.torch"."""
    saved: Any
    present: Any
    severity: Severity


def compare(saved: object, present: Fingerprint, action: Action) -> list[Difference]:
    """What differs and matters to the action, in the order of the fields of `Fingerprint`.

    In an evaluation, people and masks are compared only where the face set is the one trained on: a test on another set is no mistake.
    The configuration is not compared, as it may change; what follows from it is.

    Args:
        saved: what a checkpoint has under "fingerprint", None where it has nothing.
        present: the present state.
        action: what the checkpoint is loaded for.
    """
    if not isinstance(saved, Mapping) or saved.get("version") != VERSION:
        known = saved.get("version") if isinstance(saved, Mapping) else None
        return [Difference("fingerprint", known, VERSION, "warn")]
    grades = _grades(saved, present, action)
    return [
        Difference(name, *pair, grades[field])
        for field, value in present.items()
        if field in grades
        for name, pair in _pairs(field, saved.get(field), value).items()
        if pair[0] != pair[1]
    ]


def describe(differences: Iterable[Difference]) -> list[str]:
    """One line a field: the values, saved before present, and what that means."""
    return [f"{_values(group)} (saved -> present): {_MEANINGS[field]}" for field, group in _by_field(differences)]


def refuse(differences: Iterable[Difference]) -> str:
    """One line for all: the values, and what to do."""
    groups = _by_field(differences)
    values, remedies = (
        ", ".join(_values(group) for _, group in groups),
        "; ".join(_REMEDIES[field] for field, _ in groups),
    )
    return f"{values} (saved -> present): {remedies}; --fingerprint.mismatch warn goes on anyway"


def _grades(saved: Mapping[str, Any], present: Fingerprint, action: Action) -> dict[str, Severity]:
    """How grave a difference is, by field; without those in which a difference says nothing."""
    silent = set()
    if saved.get("masks") is None or present["masks"] is None or action not in ("fit", "test"):
        silent.add("masks")
    if action == "fit":
        return {field: grade for field, grade in _RESUMING.items() if field not in silent}
    if saved.get("face_set") != present["face_set"]:
        silent |= {"masks", "training_data"}
    if present["training_data"] is None:
        silent.add("training_data")
    return {field: grade for field, grade in _EVALUATING.items() if field not in silent}


def _pairs(field: str, saved: object, present: object) -> dict[str, tuple[object, object]]:
    """Saved and present value of a field, or of each of its keys."""
    if not isinstance(saved, Mapping) or not isinstance(present, Mapping):
        return {field: (saved, present)}
    return {f"{field}.{key}": (saved.get(key), present.get(key)) for key in dict.fromkeys([*present, *saved])}


def _by_field(differences: Iterable[Difference]) -> list[tuple[str, list[Difference]]]:
    return [(field, list(group)) for field, group in groupby(differences, key=lambda each: each.field.split(".")[0])]


def _values(group: list[Difference]) -> str:
    field = group[0].field.split(".")[0]
    changes = [
        f"{each.field.removeprefix(field)[1:]} {_word(each.saved)} -> {_word(each.present)}".lstrip() for each in group
    ]
    return f"{_TITLES.get(field, field)} {', '.join(changes)}"


def _word(value: object) -> str:
    return "none" if value is None else str(value)


FINGERPRINT = "fingerprint"
"""The key of a checkpoint under which its `Fingerprint` lies."""


class FingerprintCallback(pl.Callback):
    """Puts a `Fingerprint` into every checkpoint, and compares that of a loaded one with the present state (`deocc.callbacks.mismatch`).

    A resumed training, a test, a validation and a prediction alike are refused where embeddings would mean something else, a resumed
    training also where it would become another one; anything else that differs is said in a line on the error stream.

    Args:
        mismatch: "refuse", or "warn" to go on whatever differs.

    Attributes:
        saved: what the loaded checkpoint says of itself; None where it says nothing, or none was loaded.
        differences: where the present state is not that.
    """

    def __init__(self, mismatch: Literal["refuse", "warn"] = "refuse") -> None:
        self.mismatch = mismatch
        self.saved: dict[str, Any] | None = None
        self.differences: list[Difference] = []
        self._present: Fingerprint | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the fingerprint of a training once, in the first process, before a strategy converts or moves the teacher's weights."""
        self.saved, self.differences, self._present = None, [], None
        if stage == "fit" and trainer.is_global_zero:
            self._present = _of_present_state(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the configuration, which is written by now."""
        if self._present is not None:
            self._present["config"] = _config(Path(trainer.default_root_dir) / runs.CONFIG)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the fingerprint of the training under `FINGERPRINT`."""
        if self._present is not None:
            checkpoint[FINGERPRINT] = self._present

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare; every process is told the same.

        Raises:
            ValueError: what must not differ does, and `mismatch` is "refuse".
        """
        action = cast(Action, str(trainer.state.fn and trainer.state.fn.value))
        saved = checkpoint.get(FINGERPRINT)
        self.saved = saved if isinstance(saved, dict) else None
        found: list[Difference] = []
        if trainer.is_global_zero:
            found = compare(self.saved, self._present or _of_present_state(trainer, pl_module), action)
        self.differences = trainer.strategy.broadcast(found)
        refused = [each for each in self.differences if each.severity == "refuse" and self.mismatch == "refuse"]
        if trainer.is_global_zero:
            for line in describe(each for each in self.differences if each not in refused):
                print(f"deocc: warning: {trainer.ckpt_path}: {line}", file=sys.stderr, flush=True)
        if refused:
            raise ValueError(f"{trainer.ckpt_path} does not fit: {refuse(refused)}")
        if self._present is not None:
            self._present["resumed"] = [*(self.saved or {}).get("resumed", []), *map(asdict, found)]

    def account(self) -> dict[str, Any]:
        """For results.json: the loaded checkpoint's fingerprint but its configuration, and the `differences`; None where it had none."""
        saved = None if self.saved is None else {key: value for key, value in self.saved.items() if key != "config"}
        return {"checkpoint": saved, "differences": [asdict(each) for each in self.differences]}


def _of_present_state(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Fingerprint:
    return build(trainer.datamodule, getattr(pl_module, "teacher", None))  # type: ignore[attr-defined]


def _config(path: Path) -> str | None:
    """The configuration as YAML, without secrets; None where a training was not started from one."""
    if not path.is_file():
        return None
    return str(yaml.safe_dump(without_secrets(yaml.safe_load(path.read_text(encoding="utf-8"))), sort_keys=False))
