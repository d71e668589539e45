"""The results file of a test: rows of the comparison, differences with intervals, restoration, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import paired_bootstrap_accuracy, paired_bootstrap_eer, tar_intervals
from deocc.evaluation.embeddings import BARE, EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import PairScores, equal_error_rate, fold_accuracy, verification_scores

ROWS = {
    "teacher_clean": "teacher, clean",
    "teacher_masked": "teacher, masked",
    "teacher_completed": "teacher, completed",
    "teacher_completed_predicted_mask": "teacher, completed, predicted mask",
    "teacher_clean_predicted_mask": "teacher, clean, predicted mask",
    "student_clean": "student, clean",
    "student_clean_predicted_mask": "student, clean, predicted mask",
    "student": "student (given mask)",
    "student_predicted_mask": "student (predicted mask)",
}
"""All rows that a test may have, in order, with their titles.

The mask is the given one unless the title says otherwise. The input of the student is a setting of the run.
"""

CLEAN_ROWS = ("teacher_clean", "teacher_clean_predicted_mask", "student_clean", "student_clean_predicted_mask")
"""Rows that compare bare faces.

Rows with a predicted mask are what a user gets, who does not know which faces are bare.
"""

DIFFERENCES = {
    "student_clean_minus_teacher_clean": ("student_clean", "teacher_clean"),
    "student_clean_predicted_mask_minus_teacher_clean": ("student_clean_predicted_mask", "teacher_clean"),
    "teacher_completed_minus_teacher_masked": ("teacher_completed", "teacher_masked"),
    "student_minus_teacher_masked": ("student", "teacher_masked"),
    "student_minus_teacher_completed": ("student", "teacher_completed"),
    "teacher_completed_predicted_mask_minus_teacher_masked": ("teacher_completed_predicted_mask", "teacher_masked"),
    "student_predicted_mask_minus_teacher_masked": ("student_predicted_mask", "teacher_masked"),
    "student_predicted_mask_minus_teacher_completed_predicted_mask": (
        "student_predicted_mask",
        "teacher_completed_predicted_mask",
    ),
}
"""Rows that are subtracted from each other, if a test has both."""

KEYS = (
    "people",
    "people_left_out",
    "images",
    "protocol",
    "rows",
    *DIFFERENCES,
    "restoration",
    "per_kind",
    "per_coverage",
    "thresholds",
)
"""Keys of a results file besides the provenance."""

DECILES = 10
_MASKED_MASKED = ("accuracy", "eer", "auc", "tar@1e-1", "tar@1e-2", "tar@1e-3", "tar@1e-4", "tar_intervals", "pairs")

Restoration = Mapping[str, Mapping[str, Any]]
"""By source of the mask ("given_mask", "predicted_mask"): result of `RestorationMetric.compute`."""

_Compared = Mapping[str, tuple[EmbeddingSet, EmbeddingSet]]
"""By row: gallery and probes."""


def build_results(
    gallery_teacher: EmbeddingSet,
    gallery_student: EmbeddingSet | None,
    probes: Mapping[str, EmbeddingSet],
    restoration: Restoration,
    kinds: Sequence[str],
    provenance: Mapping[str, Any],
    protocol: AllPairs | None = None,
    replicates: int = 1000,
    seed: int = 0,
    predicted_mask_galleries: Mapping[str, EmbeddingSet] | None = None,
) -> dict[str, Any]:
    """Build the content of the results file.

    Args:
        gallery_teacher: embeddings of the clean faces by the teacher.
        gallery_student: the same by the student; None if no student was tested.
        probes: by name of a row of `ROWS` other than the clean ones.
        restoration: by source of the mask.
        kinds: names of the occluders, in the order of `EmbeddingSet.kind`.
        provenance: command, seeds, versions, hashes; its keys are placed beside those of `KEYS`.
        protocol: comparisons; default all pairs.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        predicted_mask_galleries: by "teacher" and "student", embeddings of the clean faces with predicted masks. They
            are the gallery of probes with predicted masks, and rows of their own.

    Returns:
        The provenance and `KEYS`: `people` and `images` of the gallery, `people_left_out` because of too many pairs,
        name of the `protocol`, `rows`, intervals of each of `DIFFERENCES`, `restoration` by source of the mask,
        `per_kind`, and `per_coverage`, rows by tenth of the probes in order of coverage.

    Raises:
        ValueError: an unknown row, a row of the student without gallery, a kind without name, provenance that would
            overwrite a result, or rows to be subtracted that scored different probes.
    """
    protocol = protocol or AllPairs()
    _check(probes, gallery_student, provenance)
    clean = {"teacher_clean": gallery_teacher}
    if gallery_student is not None:
        clean["student_clean"] = gallery_student
    clean |= {f"{name}_clean_predicted_mask": gallery for name, gallery in (predicted_mask_galleries or {}).items()}
    narrowed = protocol.narrow({**clean, **probes})
    clean = {name: narrowed[name] for name in CLEAN_ROWS if name in narrowed}
    compared = {name: (_gallery_of(name, clean), narrowed[name]) for name in ROWS if name in probes}
    rows = {name: clean_row(gallery, protocol) for name, gallery in clean.items()}
    rows |= {name: score_row(gallery, probe, protocol) for name, (gallery, probe) in compared.items()}
    people = len(torch.unique(clean["teacher_clean"].identity))
    return {
        **provenance,
        "people": people,
        "people_left_out": len(torch.unique(gallery_teacher.identity)) - people,
        "images": len(clean["teacher_clean"]),
        "protocol": type(protocol).__name__,
        "rows": {name: rows[name] for name in ROWS if name in rows},
        **_differences(clean, compared, protocol, replicates, seed),
        "restoration": {source: scores["mean"] for source, scores in restoration.items()},
        "per_kind": _per_kind(compared, protocol, restoration, kinds),
        "per_coverage": _per_coverage(compared, protocol),
    }


def build_restoration_results(
    restoration: Restoration, kinds: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the results of a test without embeddings: see `build_results`, without rows and differences.

    Raises:
        ValueError: a kind without name, or provenance that would overwrite a result.
    """
    _check({}, None, provenance)
    means = {source: scores["mean"] for source, scores in restoration.items()}
    return {**provenance, "rows": {}, "restoration": means, "per_kind": _per_kind({}, AllPairs(), restoration, kinds)}


def clean_row(gallery: EmbeddingSet, protocol: AllPairs | None = None) -> dict[str, Any]:
    """Score clean against clean faces, as `within` and `identify` of the protocol define."""
    protocol = protocol or AllPairs()
    scores = _pair_figures(protocol.within(gallery), protocol.repeats(gallery)[1])
    return {**scores, **protocol.identify(gallery, gallery)}


def score_row(gallery: EmbeddingSet, probe: EmbeddingSet, protocol: AllPairs | None = None) -> dict[str, Any]:
    """Score the probes of a recogniser against its clean gallery.

    Returns:
        `eer`, `auc`, `tar@...` and thresholds of the pairs that the protocol (default: all pairs) compares clean with
        masked; `accuracy` if it has folds; `tar_intervals`; identification scores; `pairs`, the numbers of genuine and
        impostor pairs; `masked_masked`, the same for pairs of two masked faces.
    """
    protocol = protocol or AllPairs()
    cross_repeats, within_repeats = protocol.repeats(probe)
    masked = _pair_figures(protocol.within(probe), within_repeats)
    return {
        **_pair_figures(protocol.cross(gallery, probe), cross_repeats),
        **protocol.identify(gallery, probe),
        "masked_masked": {name: masked[name] for name in _MASKED_MASKED if name in masked},
    }


def decile_edges(coverage: Tensor) -> Tensor:
    """Return (11,) float64, the 0th, 10th, ... 100th percentile of the known coverages (N,); NaN if none is known."""
    known = coverage[~coverage.isnan()].double()
    if len(known) == 0:
        return torch.full((DECILES + 1,), torch.nan, dtype=torch.float64)
    return known.quantile(torch.linspace(0, 1, DECILES + 1, dtype=torch.float64))


def coverage_deciles(coverage: Tensor, edges: Tensor | None = None) -> Tensor:
    """Return (N,) int64, the decile 0 to 9 of each coverage, -1 for an unknown one.

    A decile contains its lower edge, the last one also its upper edge. Equal coverages are never separated, so deciles
    may differ in size or be empty. Coverages beyond the edges belong to the first or last decile.

    >>> coverage_deciles(torch.tensor([0.3, torch.nan, 0.1, 0.2])).tolist()
    [9, -1, 0, 5]

    Args:
        coverage: (N,), NaN where unknown.
        edges: (11,) from `decile_edges`, to divide several sets equally; None: those of `coverage`.
    """
    edges = decile_edges(coverage) if edges is None else edges
    decile = torch.bucketize(coverage.double(), edges[1:-1], right=True)
    return decile.masked_fill(coverage.isnan(), -1)


def by_coverage(probe: EmbeddingSet, edges: Tensor | None = None) -> dict[int, EmbeddingSet]:
    """Return the probes of each decile that is not empty; probes of unknown coverage are left out."""
    decile = coverage_deciles(probe.coverage, edges)
    return {number: probe.take(decile == number) for number in torch.unique(decile[decile >= 0]).tolist()}


def _gallery_of(row: str, clean: Mapping[str, EmbeddingSet]) -> EmbeddingSet:
    """Return the clean faces of the same recogniser, with the same source of masks if available."""
    name = f"{row.split('_')[0]}_clean"
    predicted = f"{name}_predicted_mask"
    return clean[predicted] if row.endswith("_predicted_mask") and predicted in clean else clean[name]


def _pair_figures(pairs: PairScores, repeats: float) -> dict[str, Any]:
    """Score pairs of which `repeats` show the same two images; rates that the images do not support are NaN."""
    genuine = int(pairs.same.sum())
    intervals = tar_intervals(pairs.similarity, pairs.same, repeats=repeats)
    figures: dict[str, Any] = verification_scores(pairs.similarity, pairs.same)
    figures |= {f"tar@{name}": interval["tar"] for name, interval in intervals.items()}
    if pairs.fold is not None:
        figures["accuracy"] = fold_accuracy(pairs)._asdict()
    return {
        **figures,
        "tar_intervals": intervals,
        "pairs": {"same": genuine, "different": len(pairs.same) - genuine},
        "people": len(torch.unique(torch.cat([pairs.first_identity, pairs.second_identity]))),
    }


def _differences(
    clean: Mapping[str, EmbeddingSet], compared: _Compared, protocol: AllPairs, replicates: int, seed: int
) -> dict[str, Any]:
    pairs: dict[str, PairScores] = {}

    def score(row: str) -> PairScores:
        if row not in pairs:
            pairs[row] = protocol.within(clean[row]) if row in clean else protocol.cross(*compared[row])
        return pairs[row]

    differences: dict[str, Any] = {}
    for name, rows in DIFFERENCES.items():
        if not all(row in clean or row in compared for row in rows):
            continue
        first, second = score(rows[0]), score(rows[1])
        if len(torch.unique(torch.cat([first.first_identity, first.second_identity]))) < 2:
            continue  # there are no impostor pairs
        differences[name] = {"eer": paired_bootstrap_eer(first, second, replicates, seed)._asdict()}
        if first.fold is not None and len(torch.unique(first.fold)) > 1:
            differences[name]["accuracy"] = paired_bootstrap_accuracy(first, second, replicates, seed)._asdict()
    return differences


def _per_kind(
    rows: _Compared, protocol: AllPairs, restoration: Restoration, kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    seen = {kind for _, probe in rows.values() for kind in probe.kind.tolist()}
    seen |= {kind for scores in restoration.values() for kind in scores["per_kind"]}
    if max(seen, default=BARE) >= len(kinds):
        raise ValueError(
            f"kind {max(seen)} was evaluated but only {len(kinds)} kinds are named: give all names, in order"
        )
    parts: dict[str, dict[str, Any]] = {}
    for kind in sorted(seen - {BARE}):
        scores = {name: score_row(gallery, probe.select(kind), protocol) for name, (gallery, probe) in rows.items()}
        restored = {source: each["per_kind"][kind] for source, each in restoration.items() if kind in each["per_kind"]}
        parts[kinds[kind]] = {"rows": scores, "restoration": restored}
    return parts


def _per_coverage(rows: _Compared, protocol: AllPairs) -> list[dict[str, Any]]:
    """Return `low` and `high` coverage and the `eer` of each row, for each tenth of the probes by coverage."""
    if not rows:
        return []
    edges = decile_edges(next(iter(rows.values()))[1].coverage)
    errors: dict[int, dict[str, Any]] = {}
    for name, (gallery, probe) in rows.items():
        for decile, part in by_coverage(probe, edges).items():
            pairs = protocol.cross(gallery, part)
            errors.setdefault(decile, {})[name] = {"eer": equal_error_rate(pairs.similarity, pairs.same)}
    return [
        {"low": float(edges[decile]), "high": float(edges[decile + 1]), "rows": errors[decile]}
        for decile in sorted(errors)
    ]


def _check(
    probes: Mapping[str, EmbeddingSet], gallery_student: EmbeddingSet | None, provenance: Mapping[str, Any]
) -> None:
    allowed = [name for name in ROWS if name not in CLEAN_ROWS]
    if unknown := [name for name in probes if name not in allowed]:
        raise ValueError(f"unknown rows {', '.join(unknown)}: choose among {', '.join(allowed)}")
    if gallery_student is None and any(name.startswith("student") for name in probes):
        raise ValueError("the student's probes came without its gallery: embed the clean faces with the student too")
    if taken := set(provenance) & set(KEYS):
        raise ValueError(f"provenance holds {', '.join(sorted(taken))}, which the results hold already: rename it")
