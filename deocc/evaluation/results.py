"""The results file of a test run: the rows of the comparison, their differences with intervals, restoration, and where it all came from."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import paired_bootstrap_eer
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.identification import rank1
from deocc.evaluation.verification import PairScores, pair_scores, verification_scores, within_scores

ROWS = {
    "teacher_clean": "teacher, clean",
    "teacher_masked": "teacher, masked",
    "teacher_completed": "teacher, completed",
    "teacher_completed_predicted_mask": "teacher, completed, predicted mask",
    "student": "student (given mask)",
    "student_predicted_mask": "student (predicted mask)",
}
"""Every row that a test may yield, in order, with its title. The mask is the given one unless the title says otherwise. What the student
sees by it, a completed face or the masked one, is a setting of the run."""

DIFFERENCES = {
    "teacher_completed_minus_teacher_masked": ("teacher_completed", "teacher_masked"),
    "student_minus_teacher_masked": ("student", "teacher_masked"),
    "student_minus_teacher_completed": ("student", "teacher_completed"),
    "student_predicted_mask_minus_teacher_masked": ("student_predicted_mask", "teacher_masked"),
}
"""Which rows are subtracted from which."""

KEYS = ("people", "images", "rows", *DIFFERENCES, "restoration", "per_kind")
"""What `build_results` writes beside the provenance."""

MAX_PAIRS = 5_000_000
"""Pairs scored in a comparison. OURS: some 200 MB; the embedded faces need 1.4 million at most."""

_MASKED = ("eer", "auc", "tar@1e-2", "tar@1e-3")

Restoration = Mapping[str, Mapping[str, Any]]
"""By the source of the mask ("given_mask", "predicted_mask"): what `RestorationMetric.compute` returned."""


def clean_row(gallery: EmbeddingSet) -> dict[str, Any]:
    """The ceiling: clean against clean, every unordered pair of two images; rank-1 as in `score_row`."""
    return {**_scores(within_scores(_some_people(gallery, _square(gallery)))), "rank1": rank1(gallery, gallery)}


def score_row(gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
    """One row: a recogniser's clean gallery against its probes.

    `eer`, `auc`, `tar@...` and thresholds: every gallery face against every probe of another image. `rank1`: one clean image a person.
    `masked_masked`: every two probes of different images and equal draw (`within_scores`). `pairs`: how many of each sort stand behind
    the first. Where a comparison would take more than `MAX_PAIRS`, the people of the lowest numbers are scored, as many as fit.
    """
    masked = verification_scores(*within_scores(_some_people(probe, _square(probe)))[:2])
    return {
        **_scores(_pairs(gallery, probe)),
        "rank1": rank1(gallery, probe),
        "masked_masked": {name: masked[name] for name in _MASKED},
    }


def build_results(
    gallery_teacher: EmbeddingSet,
    gallery_student: EmbeddingSet | None,
    probes: Mapping[str, EmbeddingSet],
    restoration: Restoration,
    kinds: Sequence[str],
    provenance: Mapping[str, Any],
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that the results file holds.

    Args:
        gallery_teacher: the teacher's embeddings of the clean faces.
        gallery_student: the student's; None where no student was tested.
        probes: by row of `ROWS`, without "teacher_clean"; those that were evaluated.
        restoration: by source of the mask.
        kinds: names of the occluders, in the order in which `EmbeddingSet.kind` counts them.
        provenance: command, seeds, versions, hashes; its keys stand beside those of `KEYS`.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `people` and `images` of the gallery; `rows` by name; each of `DIFFERENCES` whose rows are there, as {"eer": interval};
        `restoration` by source; `per_kind` by name, each with its `rows` and `restoration`; the provenance.

    Raises:
        ValueError: an unknown row, a student's row without a gallery, a kind without a name, provenance that would overwrite a result, or
            rows to be subtracted that scored different probes.
    """
    _check(probes, gallery_student, provenance)
    galleries = {name: gallery_student if name.startswith("student") else gallery_teacher for name in probes}
    ordered = {name: (gallery, probes[name]) for name in ROWS if (gallery := galleries.get(name)) is not None}
    rows = {"teacher_clean": clean_row(gallery_teacher)} | {name: score_row(*sets) for name, sets in ordered.items()}
    return {
        **provenance,
        "people": len(torch.unique(gallery_teacher.identity)),
        "images": len(gallery_teacher),
        "rows": rows,
        **_differences(ordered, replicates, seed),
        "restoration": {source: scores["mean"] for source, scores in restoration.items()},
        "per_kind": _per_kind(ordered, restoration, kinds),
    }


def build_restoration_results(restoration: Restoration, kinds: Sequence[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """As `build_results`, of a test that embedded nothing: no rows, no differences.

    Raises:
        ValueError: a kind without a name, or provenance that would overwrite a result.
    """
    _check({}, None, provenance)
    means = {source: scores["mean"] for source, scores in restoration.items()}
    return {**provenance, "rows": {}, "restoration": means, "per_kind": _per_kind({}, restoration, kinds)}


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all. What is not a finite number becomes null; a path becomes text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results), indent=2, allow_nan=False, default=str)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _scores(pairs: PairScores) -> dict[str, Any]:
    genuine = int(pairs.same.sum())
    return {
        **verification_scores(pairs.similarity, pairs.same),
        "pairs": {"same": genuine, "different": len(pairs.same) - genuine},
        "people": len(torch.unique(torch.cat([pairs.first_person, pairs.second_person]))),
    }


def _pairs(gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
    """Gallery against probes, of as many people as `MAX_PAIRS` allows."""
    number = len(gallery) * len(probe)
    return pair_scores(_some_people(gallery, number), _some_people(probe, number))


def _square(members: EmbeddingSet) -> int:
    """The number of pairs that `within_scores` would compare, its diagonal and both orders not yet taken out."""
    return int(torch.bincount(members.draw()).square().sum()) // 2


def _some_people(members: EmbeddingSet, pairs: int) -> EmbeddingSet:
    """All members if `pairs` is not too many, else those of the lowest-numbered people: pairs grow with the square of the people."""
    if pairs <= MAX_PAIRS:
        return members
    people = torch.unique(members.identity)
    return members.take(torch.isin(members.identity, people[: max(2, int(len(people) * math.sqrt(MAX_PAIRS / pairs)))]))


def _differences(rows: Mapping[str, tuple[EmbeddingSet, EmbeddingSet]], replicates: int, seed: int) -> dict[str, Any]:
    wanted = {name: both for name, both in DIFFERENCES.items() if set(both) <= set(rows)}
    pairs = {name: _pairs(*rows[name]) for name in {name for both in wanted.values() for name in both}}
    return {
        name: {"eer": paired_bootstrap_eer(pairs[first], pairs[second], replicates, seed)._asdict()}
        for name, (first, second) in wanted.items()
    }


def _per_kind(
    rows: Mapping[str, tuple[EmbeddingSet, EmbeddingSet]], restoration: Restoration, kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The rows and the restoration of each kind that was seen."""
    seen = {kind for _, probe in rows.values() for kind in probe.kind.tolist()} | {
        kind for scores in restoration.values() for kind in scores["per_kind"]
    }
    if max(seen, default=-1) >= len(kinds):
        raise ValueError(f"kind {max(seen)} was evaluated but only {len(kinds)} kinds are named: give all names, in order")
    return {
        kinds[kind]: {
            "rows": {name: score_row(gallery, probe.select(kind)) for name, (gallery, probe) in rows.items()},
            "restoration": {source: scores["per_kind"][kind] for source, scores in restoration.items() if kind in scores["per_kind"]},
        }
        for kind in sorted(seen - {-1})
    }


def _check(probes: Mapping[str, EmbeddingSet], gallery_student: EmbeddingSet | None, provenance: Mapping[str, Any]) -> None:
    allowed = [name for name in ROWS if name != "teacher_clean"]
    unknown = [name for name in probes if name not in allowed]
    if unknown:
        raise ValueError(f"unknown rows {', '.join(unknown)}: choose among {', '.join(allowed)}")
    if gallery_student is None and any(name.startswith("student") for name in probes):
        raise ValueError("the student's probes came without its gallery: embed the clean faces with the student too")
    taken = set(provenance) & set(KEYS)
    if taken:
        raise ValueError(f"provenance holds {', '.join(sorted(taken))}, which the results hold already: rename it")


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
