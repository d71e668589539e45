"""Provenance of a checkpoint: what it was trained with, compared with the present state when it is loaded."""

import contextlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pytorch_lightning as pl
import yaml
from pytorch_lightning.trainer.states import TrainerFn

import deocc
from deocc import runs
from deocc.callbacks.dashboards import without_secrets
from deocc.data import MaskedFaceDataModule
from deocc.data.datamodule import manifest_hash
from deocc.files import checksum
from deocc.geometry import TEMPLATES
from deocc.networks import Embedder
from deocc.networks.embedders.registry import teacher_fingerprint

FINGERPRINT: Final = "fingerprint"  # the key of the fingerprint (`build`) in a checkpoint and in `results.json`
VERSION: Final = 1  # format of the fingerprint: raised when a field changes its meaning
# Packages whose version can change results
PACKAGES: Final = (
    *("torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("albumentations", "timm", "numpy", "opencv-python-headless"),
)
Severity = Literal["refuse", "warn"]

_DIGITS: Final = 16  # hexadecimal digits of each hash
_PACKAGE: Final = Path(deocc.__file__).parent
_EMBEDDINGS: Final = "embeddings are not comparable with those of the training"
# By field: severity of a difference for a resumed training and for an evaluation (None: none), and its meaning
_RULES: Final[dict[str, tuple[Severity, Severity | None, str]]] = {
    "fingerprint": ("warn", "warn", "another deocc wrote it, so that it cannot be compared"),
    "code": ("warn", "warn", "another deocc may give other figures"),
    "packages": ("warn", "warn", "other versions may give other figures"),
    "seeds": ("refuse", None, "set seed_everything and data.seed as they were, or start a new run"),
    "training_data": ("refuse", "warn", "give the images, people and splits of the training, or start a new run"),
    "template": ("refuse", "refuse", f"{_EMBEDDINGS}: use the deocc and the teacher_options of the training"),
    "size": ("refuse", "refuse", f"{_EMBEDDINGS}: set data.size as it was"),
    "masks": ("warn", "warn", "figures are not comparable with those under the run's masks"),
    "teacher": ("refuse", "refuse", f"{_EMBEDDINGS}: give the teacher that it was trained with"),
}
_logger = logging.getLogger(__name__)


def build(data: MaskedFaceDataModule, teacher: Embedder | None) -> dict[str, Any]:
    """Return the fingerprint of the present state, as plain values.

    Apart from `config`, which the callback fills in, it is equal on another machine with the same code, data and
    packages. `face_set`, a credit line, distinguishes another set from a set that has changed. Hashes of what does not
    exist, such as the teacher of a stage without one, are None. `resumed` contains the differences that earlier resumed
    trainings have accepted, oldest first.
    """
    probes: Any = data.test_dataloader()[1].dataset
    templates = {"canonical": TEMPLATES["canonical"], "teacher": teacher.template if teacher else None}
    return {
        "version": VERSION,
        "config": None,
        "commit": _git_commit(),
        "code": {"version": deocc.__version__, "hash": checksum(*sorted(_PACKAGE.rglob("*.py")))[:_DIGITS]},
        "packages": package_versions(),
        "seeds": {"seed_everything": global_seed(), "data": data.seed},
        "face_set": data.face_set.credit,
        "training_data": data.face_set.fingerprint("train") if len(data.face_set.bare("train")) else None,
        "template": {
            name: checksum(repr((each.size, each.points)))[:_DIGITS] if each else None
            for name, each in templates.items()
        },
        "size": data.size,
        "masks": manifest_hash(probes) if len(probes) else None,
        "teacher": teacher_fingerprint(teacher)[:_DIGITS] if teacher else None,
        "resumed": [],
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`; None for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def global_seed() -> int | None:
    """Return the seed that `seed_everything` was called with; None if it was not."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed is not None else None


def _git_commit() -> str | None:
    """Return the commit of a clone, followed by "-dirty" if files have changed; None for an installed package."""
    git, clone = shutil.which("git"), _PACKAGE.parent
    if git is None or not (clone / ".git").exists():
        return None
    command = [git, "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


class Difference(NamedTuple):
    """A value that differs from the checkpoint's."""

    field: str  # key of the fingerprint, with a dot and the key within a field of several values: "packages.torch"
    saved: Any
    present: Any
    severity: Severity


def compare(saved: Mapping[str, Any] | None, present: Mapping[str, Any], resuming: bool) -> list[Difference]:
    """Return the differences that matter, in the order of the fields; command, configuration and commit may differ.

    An evaluation compares training data and masks only if the face set is the one trained on. `saved` is None if the
    checkpoint has no fingerprint.
    """
    saved = saved or {}
    if saved.get("version") != VERSION:
        return [Difference("fingerprint", saved.get("version"), VERSION, "warn")]
    same_data = resuming or saved.get("face_set") == present["face_set"]
    differences = []
    for field, (if_resuming, if_evaluating, _) in _RULES.items():
        severity = if_resuming if resuming else if_evaluating
        before, after = saved.get(field), present.get(field)
        if severity is None or (field in ("training_data", "masks") and (None in (before, after) or not same_data)):
            continue
        if isinstance(before, Mapping) or isinstance(after, Mapping):
            before, after = before or {}, after or {}
            for key in {**after, **before}:
                if before.get(key) != after.get(key):
                    differences.append(Difference(f"{field}.{key}", before.get(key), after.get(key), severity))
        elif before != after:
            differences.append(Difference(field, before, after, severity))
    return differences


def describe(differences: Iterable[Difference]) -> list[str]:
    """Return one line per field: saved and present values, and what the difference means."""
    changes: dict[str, list[str]] = {}
    for each in differences:
        field, _, name = each.field.partition(".")
        changes.setdefault(field, []).append(f"{name} {each.saved} -> {each.present}".lstrip())
    return [
        f"{field.replace('_', ' ')} {', '.join(found)} (saved -> present): {_RULES[field][2]}"
        for field, found in changes.items()
    ]


class FingerprintCallback(pl.Callback):
    """Store the fingerprint (`build`) in every checkpoint, and compare that of a loaded one with the present state.

    A checkpoint is refused if embeddings would not be comparable, and also in a resumed training if it would continue
    as another training. Other differences are logged as warnings.

    Args:
        mismatch: "refuse", or "warn" to continue in any case.
    """

    def __init__(self, mismatch: Literal["refuse", "warn"] = "refuse") -> None:
        self.mismatch = mismatch
        self.saved: dict[str, Any] | None = None  # fingerprint of the loaded checkpoint, if it has one
        self.differences: list[Difference] = []  # of the present state from it
        self._present: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        """Build a training's fingerprint, before a strategy converts or moves the teacher's weights."""
        self.saved, self.differences, self._present = None, [], None
        if stage == "fit" and trainer.is_global_zero:
            self._present = build(trainer.datamodule, getattr(pl_module, "teacher", None))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the configuration, which has been written by now; a training without one leaves None."""
        path = Path(trainer.default_root_dir) / runs.CONFIG
        if self._present is not None and path.is_file():
            config = without_secrets(yaml.safe_load(path.read_text(encoding="utf-8")))
            self._present["config"] = yaml.safe_dump(config, sort_keys=False)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Store the fingerprint under `FINGERPRINT`."""
        if self._present is not None:
            checkpoint[FINGERPRINT] = self._present

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the fingerprints on the first rank; on all, warn or raise ValueError."""
        saved = checkpoint.get(FINGERPRINT)
        self.saved = saved if isinstance(saved, dict) else None
        found: list[Difference] = []
        if trainer.is_global_zero:
            present = self._present or build(trainer.datamodule, getattr(pl_module, "teacher", None))
            found = compare(self.saved, present, resuming=trainer.state.fn == TrainerFn.FITTING)
        self.differences = trainer.strategy.broadcast(found)
        refused = [each for each in self.differences if each.severity == "refuse" and self.mismatch == "refuse"]
        if trainer.is_global_zero:
            for line in describe(each for each in self.differences if each not in refused):
                _logger.warning("%s: %s", trainer.ckpt_path, line)
        if refused:
            reasons = "; ".join(describe(refused))
            advice = "--fingerprint.mismatch warn continues anyway"
            raise ValueError(f"{trainer.ckpt_path} does not fit: {reasons}; {advice}")
        if self._present is not None:
            self._present["resumed"] = [*(self.saved or {}).get("resumed", []), *(each._asdict() for each in found)]

    def account(self) -> dict[str, Any]:
        """Return, for `results.json`, the loaded fingerprint without its configuration, and the differences."""
        saved = None if self.saved is None else {key: value for key, value in self.saved.items() if key != "config"}
        return {"checkpoint": saved, "differences": [each._asdict() for each in self.differences]}
