"""Where the fingerprint of a checkpoint and the present state differ, how grave that is, and how it is said."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

from deocc.callbacks.provenance import VERSION, Fingerprint

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
_EVALUATING: Final[dict[str, Severity]] = {name: grade for name, grade in _RESUMING.items() if name != "seeds"} | {"training_data": "warn"}

_TITLES: Final = {"template": "alignment template", "size": "crop size", "training_data": "training data", "masks": "evaluation masks"}
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
    values, remedies = ", ".join(_values(group) for _, group in groups), "; ".join(_REMEDIES[field] for field, _ in groups)
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
    changes = [f"{each.field.removeprefix(field)[1:]} {_word(each.saved)} -> {_word(each.present)}".lstrip() for each in group]
    return f"{_TITLES.get(field, field)} {', '.join(changes)}"


def _word(value: object) -> str:
    return "none" if value is None else str(value)
