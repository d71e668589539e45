"""Results of a test: rows of the comparison, differences with intervals, restoration, provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from deocc.evaluation.bootstrap import bootstrap_figures, paired_interval, tar_intervals
from deocc.evaluation.embeddings import BARE, EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import PairScores, check_same_pairs, fold_accuracy, roc_curve, verification_scores

# All rows that a test may have, in order, with their titles. The mask is the given one unless the title says otherwise.
# The input of the student is a setting of the run. The judge is a recogniser that took no part in training
# (`deocc.callbacks.JudgeCallback`).
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
    "judge_clean": "judge, clean",
    "judge_masked": "judge, masked",
    "judge_completed": "judge, completed",
    "judge_completed_predicted_mask": "judge, completed, predicted mask",
}

# Rows that compare bare faces; those with a predicted mask are what a user gets, who does not know which faces are bare
CLEAN_ROWS = (
    "teacher_clean",
    "teacher_clean_predicted_mask",
    "student_clean",
    "student_clean_predicted_mask",
    "judge_clean",
)

# Rows that are subtracted from each other, if a test has both
DIFFERENCES = {
    f"{first}_minus_{second}": (first, second)
    for first, second in (
        ("student_clean", "teacher_clean"),
        ("student_clean_predicted_mask", "teacher_clean"),
        ("teacher_completed", "teacher_masked"),
        ("student", "teacher_masked"),
        ("student", "teacher_completed"),
        ("teacher_completed_predicted_mask", "teacher_masked"),
        ("student_predicted_mask", "teacher_masked"),
        ("student_predicted_mask", "teacher_completed_predicted_mask"),
        ("judge_completed", "judge_masked"),
        ("judge_completed_predicted_mask", "judge_masked"),
    )
}

# Keys of a results file besides the provenance
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

_DECILES = 10
_MASKED_MASKED = ("accuracy", "eer", "auc", "tar@1e-1", "tar@1e-2", "tar@1e-3", "tar@1e-4", "tar_intervals", "pairs")

Restoration = Mapping[str, Mapping[str, Any]]  # by source of the mask: result of `RestorationMetric.compute`
_Compared = Mapping[str, tuple[EmbeddingSet, EmbeddingSet]]  # by row: gallery and probes


@dataclass(frozen=True)
class Results:
    """Results of a test, for which each comparison was scored once."""

    content: dict[str, Any]  # of `results.json`, see `build_results`
    # By row of `ROWS` that has any, the scored pairs: two clean faces in `CLEAN_ROWS`, else a clean and a masked one
    pairs: dict[str, PairScores] = field(default_factory=dict)
    embeddings: dict[str, EmbeddingSet] = field(default_factory=dict)  # by row, those that were compared


def build_results(
    embeddings: Mapping[str, EmbeddingSet],
    restoration: Restoration,
    kinds: Sequence[str],
    provenance: Mapping[str, Any],
    protocol: AllPairs | None = None,
    mask_prediction: Mapping[str, Any] | None = None,
    replicates: int = 1000,
) -> Results:
    """Score all comparisons of a test.

    Args:
        embeddings: by row of `ROWS`; clean faces in `CLEAN_ROWS`, masked ones in the others. None in a test of stage 1.
        restoration: by source of the mask, "given_mask" or "predicted_mask".
        kinds: names of the occluders, in the order of `EmbeddingSet.kind`.
        provenance: command, seeds, versions, hashes; its keys are placed beside those of `KEYS`.
        protocol: comparisons; default all pairs.
        mask_prediction: result of `MaskPredictionMetric.compute`.
        replicates: of the bootstrap.

    Returns:
        Results whose content is the provenance and `KEYS`, of which `people_left_out` were left out because of too many
        pairs, and `per_coverage` has rows by tenth of the probes in order of coverage; and `mask_prediction`. Without
        embeddings they lack what needs some.
    """
    protocol = protocol or AllPairs()
    means = {source: scores["mean"] for source, scores in restoration.items()}
    predicted = {} if mask_prediction is None else {"mask_prediction": _mask_prediction(mask_prediction, kinds)}
    if not embeddings:
        per_kind = _per_kind({}, protocol, restoration, kinds)
        return Results({**provenance, "rows": {}, "restoration": means, "per_kind": per_kind, **predicted})
    if not any(name in embeddings for name in CLEAN_ROWS):  # a list of pairs that has only occluded images
        none = torch.zeros(0, dtype=torch.int64)
        galleries = {f"{name.split('_')[0]}_clean": members.take(none) for name, members in embeddings.items()}
        embeddings = {"teacher_clean": next(iter(galleries.values())), **embeddings, **galleries}
    narrowed = protocol.narrow(embeddings)
    masked = {
        row: (gallery_of(row, narrowed), narrowed[row]) for row in ROWS if row in narrowed and row not in CLEAN_ROWS
    }
    pairs, rows = _score_rows(narrowed, masked, protocol)
    people = len(torch.unique(narrowed["teacher_clean"].identity))
    content = {
        **provenance,
        "people": people,
        "people_left_out": len(torch.unique(embeddings["teacher_clean"].identity)) - people,
        "images": len(narrowed["teacher_clean"]),
        "protocol": type(protocol).__name__,
        "rows": rows,
        **_differences(pairs, replicates),
        "restoration": means,
        "per_kind": _per_kind(masked, protocol, restoration, kinds),
        "per_coverage": _per_coverage(masked, protocol),
        **predicted,
    }
    return Results(content, pairs, narrowed)


def score_row(
    gallery: EmbeddingSet, probe: EmbeddingSet, protocol: AllPairs | None = None, pairs: PairScores | None = None
) -> dict[str, Any]:
    """Score the masked faces of a recogniser against its clean gallery.

    Returns:
        `eer`, `auc`, `tar@...` and thresholds of the pairs that the protocol (default: all pairs) compares clean with
        masked, or of `pairs`, if these are known; `accuracy` if it has folds; `tar_intervals`; identification scores;
        `pairs`, the numbers of genuine and impostor pairs; `masked_masked`, the same for pairs of two masked faces.
    """
    protocol = protocol or AllPairs()
    cross_repeats, within_repeats = protocol.repeats(probe)
    cross = _pair_figures(protocol.cross(gallery, probe) if pairs is None else pairs, cross_repeats)
    within = _pair_figures(protocol.within(probe), within_repeats)
    masked_masked = {name: within[name] for name in _MASKED_MASKED if name in within}
    return {**cross, **protocol.identify(gallery, probe), "masked_masked": masked_masked}


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers of a row as `prefix/name`, for a logger; an accuracy over folds is represented by its mean."""
    plain = {**scores, "accuracy": scores["accuracy"]["mean"]} if "accuracy" in scores else scores
    return {f"{prefix}/{name}": float(value) for name, value in plain.items() if isinstance(value, int | float)}


def gallery_of(row: str, embeddings: Mapping[str, EmbeddingSet]) -> EmbeddingSet:
    """Return the clean faces of the same recogniser, with the same source of masks if available."""
    name = f"{row.split('_')[0]}_clean"
    predicted = f"{name}_predicted_mask"
    return embeddings[predicted if row.endswith("_predicted_mask") and predicted in embeddings else name]


def _score_rows(
    embeddings: Mapping[str, EmbeddingSet], masked: _Compared, protocol: AllPairs
) -> tuple[dict[str, PairScores], dict[str, dict[str, Any]]]:
    """Return the pairs of each row that has any, and the figures of all rows."""
    pairs, figures = {}, {}
    for row in (row for row in ROWS if row in embeddings):
        if row in masked:
            scored = protocol.cross(*masked[row])
            figures[row] = score_row(*masked[row], protocol, scored)
        else:
            gallery = embeddings[row]
            scored = protocol.within(gallery)
            figures[row] = _pair_figures(scored, protocol.repeats(gallery)[1]) | protocol.identify(gallery, gallery)
        if len(scored.same):
            pairs[row] = scored
    return pairs, figures


def _pair_figures(pairs: PairScores, repeats: float) -> dict[str, Any]:
    """Score pairs of which `repeats` show the same two images; rates that the images do not support are NaN."""
    genuine, curve = int(pairs.same.sum()), roc_curve(pairs.similarity, pairs.same)
    intervals = tar_intervals(pairs.similarity, pairs.same, repeats, curve)
    figures: dict[str, Any] = verification_scores(pairs.similarity, pairs.same, curve)
    figures |= {f"tar@{name}": interval["tar"] for name, interval in intervals.items()}
    if pairs.fold is not None:
        figures["accuracy"] = fold_accuracy(pairs)._asdict()
    figures |= {"tar_intervals": intervals, "pairs": {"same": genuine, "different": len(pairs.same) - genuine}}
    return {**figures, "people": len(torch.unique(torch.cat([pairs.first_identity, pairs.second_identity])))}


def _differences(pairs: Mapping[str, PairScores], replicates: int) -> dict[str, Any]:
    @cache
    def figures_of(row: str) -> dict[str, torch.Tensor]:
        fold = pairs[row].fold
        names = ("eer",) if fold is None or len(torch.unique(fold)) < 2 else ("eer", "accuracy")
        return bootstrap_figures([[pairs[row]]], replicates, names=names)

    differences: dict[str, Any] = {}
    for name, rows in DIFFERENCES.items():
        if not all(row in pairs for row in rows):
            continue
        first, second = (pairs[row] for row in rows)
        check_same_pairs(first, second)
        if len(torch.unique(torch.cat([first.first_identity, first.second_identity]))) < 2:
            continue  # there are no impostor pairs
        one, other = map(figures_of, rows)
        differences[name] = {figure: paired_interval(one[figure], other[figure])._asdict() for figure in one}
    return differences


def _per_kind(rows: _Compared, protocol: AllPairs, restoration: Restoration, kinds: Sequence[str]) -> dict[str, Any]:
    seen = {kind for _, probe in rows.values() for kind in probe.kind.tolist()}
    seen |= {kind for scores in restoration.values() for kind in scores["per_kind"]}
    parts = {}
    for kind in sorted(seen - {BARE}):
        scores = {}
        for name, (gallery, probe) in rows.items():
            scores[name] = score_row(gallery, probe.take(probe.kind == kind), protocol)
        restored = {source: each["per_kind"][kind] for source, each in restoration.items() if kind in each["per_kind"]}
        parts[kinds[kind]] = {"rows": scores, "restoration": restored}
    return parts


def _per_coverage(rows: _Compared, protocol: AllPairs) -> list[dict[str, Any]]:
    """Return `low` and `high` coverage and the `eer` of each row, for each tenth of the probes by coverage.

    The first row determines the edges for all. A tenth contains its lower edge, the last one also its upper edge. Equal
    coverages are never separated, so sizes may differ; empty tenths and probes of unknown coverage are left out.
    """
    coverage = next((probe.coverage.double() for _, probe in rows.values()), torch.zeros(0))
    known = coverage[~coverage.isnan()]
    if len(known) == 0:
        return []
    edges = known.quantile(torch.linspace(0, 1, _DECILES + 1, dtype=torch.float64))
    tenths: list[dict[str, Any]] = []
    for number in range(_DECILES):
        errors = {}
        for name, (gallery, probe) in rows.items():
            decile = torch.bucketize(probe.coverage.double(), edges[1:-1], right=True)
            part = probe.take((decile == number) & ~probe.coverage.isnan())
            if len(part):
                pairs = protocol.cross(gallery, part)
                errors[name] = {"eer": verification_scores(pairs.similarity, pairs.same)["eer"]}
        if errors:
            tenths.append({"low": float(edges[number]), "high": float(edges[number + 1]), "rows": errors})
    return tenths


def _mask_prediction(scores: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """Return `bare` and `masked` scores and `per_kind` by name; `masked` averages `found` over kinds."""
    per_kind = {kinds[kind]: dict(each) for kind, each in scores["per_kind"].items() if kind != BARE}
    results: dict[str, Any] = {"per_kind": per_kind}
    if per_kind:
        found = sum(each["found"] for each in per_kind.values()) / len(per_kind)
        results["masked"] = {"iou": scores["mean"]["iou"], "recall": scores["mean"]["recall"], "found": found}
    if BARE in scores["per_kind"]:
        results["bare"] = {"found": scores["per_kind"][BARE]["found"]}
    return results
