"""Fingerprint of a checkpoint: what it was trained with, compared with the present state when it is loaded."""

import hashlib
import logging
import os
import platform
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

FINGERPRINT: Final = "fingerprint"
"""The key of the `Fingerprint` in a checkpoint and in `results.json`."""

VERSION: Final = 1
"""Format of the fingerprint: raised when a field is added or changes its meaning."""

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
"""Packages whose version can change results."""

Severity = Literal["refuse", "warn"]
Action = Literal["fit", "validate", "test", "predict"]
"""Purpose of loading a checkpoint, in Lightning's terms; "fit" resumes a training."""

_DIGITS: Final = 16  # hexadecimal digits of each hash
_logger = logging.getLogger(__name__)


class Fingerprint(TypedDict):
    """Plain values that are equal on another machine with the same data and packages."""

    version: int
    """`VERSION` of the deocc that wrote it."""
    config: str | None
    """The run's configuration as YAML, without secrets."""
    code: dict[str, str]
    """`version` of deocc and `hash` of its source files."""
    packages: dict[str, str | None]
    """Versions by name; None for a package that is not installed."""
    seeds: dict[str, int | None]
    """`seed_everything`, None if it was not set, and `data`."""
    face_set: str
    """Credit line of the face set, which distinguishes another set from a set that has changed."""
    training_data: str | None
    """`training_data_hash`."""
    template: dict[str, str | None]
    """Hashes of the `canonical` template and of the template of the `teacher`."""
    size: int
    """Side of the canonical crop in pixels."""
    masks: str | None
    """Hash of the mask manifest of the test; None for a set without test images."""
    teacher: str | None
    """Hash of the teacher's weights and input; None for a stage without teacher."""
    resumed: list[dict[str, Any]]
    """Accepted differences of earlier resumed trainings (`Difference`), oldest first."""


def build(data: MaskedFaceDataModule, teacher: Embedder | None) -> Fingerprint:
    """Return the fingerprint of the present state; `config` is None.

    This takes less than 0.1 s for the embedded faces. Of a folder of a million faces, names and sizes are read, no
    pixels.
    """
    probes = cast(FixedFaces, data.test_dataloader()[1].dataset)
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
        "masks": manifest_hash(probes) if len(probes) else None,
        "teacher": teacher_fingerprint(teacher)[:_DIGITS] if teacher else None,
        "resumed": [],
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`; None for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def global_seed() -> int | None:
    """Return the seed that `seed_everything` was called with; None if it was not."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed is not None else None


def source_hash(package: Path = Path(deocc.__file__).parent) -> str:
    """Return a hash of the names and contents of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:_DIGITS]


def template_hash(template: Template) -> str:
    """Return a hash of the template's size and points."""
    return hashlib.sha256(repr((template.size, template.points)).encode()).hexdigest()[:_DIGITS]


def training_data_hash(face_set: FaceSet) -> str | None:
    """Return a hash of the training images, identities and landmarks; None for a set without training identities.

    It is `FaceSet.fingerprint`, except for a folder: decoding a million images would take an hour, so that only names,
    file sizes and landmarks are hashed. An image that is replaced by one of equal size in bytes is not detected.
    """
    if len(face_set.bare("train")) == 0:
        return None
    if not isinstance(face_set, FolderFaces):
        return face_set.fingerprint("train")
    indices = face_set.indices("train")
    digest = hashlib.sha256(face_set.landmarks[indices].round(2).tobytes())
    for index in indices.tolist():
        name = face_set.names[index]  # begins with the identity
        size = (face_set.root / name).stat().st_size
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class _Rule:
    """What a difference in a field means.

    Attributes:
        title: of the field in a message.
        meaning: consequence, for a warning.
        resuming: severity when a training is resumed.
        evaluating: severity otherwise; None: no difference. An evaluation draws no random numbers.
        remedy: for a refusal.
    """

    title: str
    meaning: str
    resuming: Severity
    evaluating: Severity | None
    remedy: str = ""


_EMBEDDINGS: Final = "embeddings are not comparable with those of the training"
_RULES: Final = {
    "fingerprint": _Rule("fingerprint", "another deocc wrote it, so that it cannot be compared", "warn", "warn"),
    "teacher": _Rule("teacher", _EMBEDDINGS, "refuse", "refuse", "give the teacher that it was trained with"),
    "template": _Rule(
        "alignment template",
        _EMBEDDINGS,
        "refuse",
        "refuse",
        "use the deocc and the teacher_options that it was trained with",
    ),
    "size": _Rule("crop size", _EMBEDDINGS, "refuse", "refuse", "set data.size as it was"),
    "training_data": _Rule(
        "training data",
        "these are not the images, people or splits of the training",
        "refuse",
        "warn",
        "give the data that it was trained on, or start a new run",
    ),
    "seeds": _Rule(
        "seeds",
        "it continues as another training",
        "refuse",
        None,
        "set seed_everything and data.seed as they were, or start a new run",
    ),
    "masks": _Rule("evaluation masks", "figures are not comparable with those under the run's masks", "warn", "warn"),
    "code": _Rule("code", "another deocc may give other figures", "warn", "warn"),
    "packages": _Rule("packages", "other versions may give other figures", "warn", "warn"),
}


@dataclass(frozen=True)
class Difference:
    """A value that differs from the checkpoint's.

    Attributes:
        field: key of `Fingerprint`, followed by a dot and the key within a field of several values: "packages.torch".
        saved: the value in the checkpoint.
        present: the present value.
        severity: "refuse" or "warn".
    """

    field: str
    saved: Any
    present: Any
    severity: Severity


def compare(saved: object, present: Fingerprint, action: Action) -> list[Difference]:
    """Return the differences that matter to an action, in the order of the fields of `Fingerprint`.

    In an evaluation, training data and masks are only compared if the face set is the one trained on: a test on another
    set is no mistake. The configuration may change and is not compared.

    Args:
        saved: the checkpoint's fingerprint; None if it has none.
        present: of the present state.
        action: purpose of loading the checkpoint.
    """
    if not isinstance(saved, Mapping) or saved.get("version") != VERSION:
        saved_version = saved.get("version") if isinstance(saved, Mapping) else None
        return [Difference("fingerprint", saved_version, VERSION, "warn")]
    ignored = set()
    if saved.get("masks") is None or present["masks"] is None or action not in ("fit", "test"):
        ignored.add("masks")
    if action != "fit" and (saved.get("face_set") != present["face_set"] or present["training_data"] is None):
        ignored.add("training_data")
    if action != "fit" and saved.get("face_set") != present["face_set"]:
        ignored.add("masks")

    differences: list[Difference] = []
    for field, value in present.items():
        severity = None
        if field in _RULES and field not in ignored:
            severity = _RULES[field].resuming if action == "fit" else _RULES[field].evaluating
        if severity is None:
            continue
        known = saved.get(field)
        before, after = {field: known}, {field: value}
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            before = {f"{field}.{key}": item for key, item in known.items()}
            after = {f"{field}.{key}": item for key, item in value.items()}
        for name in dict.fromkeys([*after, *before]):
            if before.get(name) != after.get(name):
                differences.append(Difference(name, before.get(name), after.get(name), severity))
    return differences


def describe(differences: Iterable[Difference]) -> list[str]:
    """Return one line per field: saved and present values, and the consequence."""
    return [f"{changes} (saved -> present): {rule.meaning}" for rule, changes in _by_field(differences)]


def refuse(differences: Iterable[Difference]) -> str:
    """Return one line for all fields: saved and present values, and the remedies."""
    fields = _by_field(differences)
    changes, remedies = ", ".join(each for _, each in fields), "; ".join(rule.remedy for rule, _ in fields)
    return f"{changes} (saved -> present): {remedies}; --fingerprint.mismatch warn continues anyway"


def _by_field(differences: Iterable[Difference]) -> list[tuple[_Rule, str]]:
    """Return the rule of each field that differs, and its title with all changes."""
    found = []
    for field, group in groupby(differences, key=lambda each: each.field.split(".")[0]):
        changes = []
        for each in group:
            saved, present = ("none" if value is None else str(value) for value in (each.saved, each.present))
            changes.append(f"{each.field.removeprefix(field)[1:]} {saved} -> {present}".lstrip())
        found.append((_RULES[field], f"{_RULES[field].title} {', '.join(changes)}"))
    return found


class FingerprintCallback(pl.Callback):
    """Store a `Fingerprint` in every checkpoint, and compare that of a loaded one with the present state.

    A checkpoint is refused if embeddings would not be comparable, and also in a resumed training if it would continue
    as another training. Other differences are logged as warnings.

    Args:
        mismatch: "refuse", or "warn" to continue in any case.

    Attributes:
        saved: the loaded checkpoint's fingerprint; None if it has none, or no checkpoint was loaded.
        differences: of the present state from it.
    """

    def __init__(self, mismatch: Literal["refuse", "warn"] = "refuse") -> None:
        self.mismatch = mismatch
        self.saved: dict[str, Any] | None = None
        self.differences: list[Difference] = []
        self._present: Fingerprint | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Build a training's fingerprint, before a strategy converts or moves the teacher's weights."""
        self.saved, self.differences, self._present = None, [], None
        if stage == "fit" and trainer.is_global_zero:
            self._present = _build_present(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the configuration, which has been written by now; a training without one leaves None."""
        path = Path(trainer.default_root_dir) / runs.CONFIG
        if self._present is not None and path.is_file():
            config = without_secrets(yaml.safe_load(path.read_text(encoding="utf-8")))
            self._present["config"] = yaml.safe_dump(config, sort_keys=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the fingerprint under `FINGERPRINT`."""
        if self._present is not None:
            checkpoint[FINGERPRINT] = self._present

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the fingerprints on the first rank and report the same on all.

        Raises:
            ValueError: a difference must be refused, and `mismatch` is "refuse".
        """
        action = cast(Action, str(trainer.state.fn and trainer.state.fn.value))
        saved = checkpoint.get(FINGERPRINT)
        self.saved = saved if isinstance(saved, dict) else None
        found: list[Difference] = []
        if trainer.is_global_zero:
            found = compare(self.saved, self._present or _build_present(trainer, pl_module), action)
        self.differences = trainer.strategy.broadcast(found)
        refused = [each for each in self.differences if each.severity == "refuse" and self.mismatch == "refuse"]
        if trainer.is_global_zero:
            for line in describe(each for each in self.differences if each not in refused):
                _logger.warning("%s: %s", trainer.ckpt_path, line)
        if refused:
            raise ValueError(f"{trainer.ckpt_path} does not fit: {refuse(refused)}")
        if self._present is not None:
            self._present["resumed"] = [*(self.saved or {}).get("resumed", []), *map(asdict, found)]

    def account(self) -> dict[str, Any]:
        """Return, for `results.json`, the loaded fingerprint without its configuration, and the differences."""
        saved = None if self.saved is None else {key: value for key, value in self.saved.items() if key != "config"}
        return {"checkpoint": saved, "differences": [asdict(each) for each in self.differences]}


def _build_present(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Fingerprint:
    return build(trainer.datamodule, getattr(pl_module, "teacher", None))  # type: ignore[attr-defined]
