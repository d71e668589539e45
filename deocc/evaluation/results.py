"""Results of a test: rows of the comparison, differences with intervals, restoration, provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from deocc.evaluation.bootstrap import bootstrap_figures, check_same_pairs, paired_interval, tar_intervals
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
    "judge_clean": "judge, clean",
    "judge_masked": "judge, masked",
    "judge_completed": "judge, completed",
    "judge_completed_predicted_mask": "judge, completed, predicted mask",
}
"""All rows that a test may have, in order, with their titles.

The mask is the given one unless the title says otherwise. The input of the student is a setting of the run. The judge
is a recogniser that took no part in training (`deocc.callbacks.JudgeCallback`).
"""

CLEAN_ROWS = (
    "teacher_clean",
    "teacher_clean_predicted_mask",
    "student_clean",
    "student_clean_predicted_mask",
    "judge_clean",
)
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
    "judge_completed_minus_judge_masked": ("judge_completed", "judge_masked"),
    "judge_completed_predicted_mask_minus_judge_masked": ("judge_completed_predicted_mask", "judge_masked"),
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

_MASKED_ROWS = tuple(name for name in ROWS if name not in CLEAN_ROWS)
_DECILES = 10
_MASKED_MASKED = ("accuracy", "eer", "auc", "tar@1e-1", "tar@1e-2", "tar@1e-3", "tar@1e-4", "tar_intervals", "pairs")

Restoration = Mapping[str, Mapping[str, Any]]
"""By source of the mask ("given_mask", "predicted_mask"): result of `RestorationMetric.compute`."""

_Compared = Mapping[str, tuple[EmbeddingSet, EmbeddingSet]]
"""By row: gallery and probes."""


@dataclass(frozen=True)
class Results:
    """Results of a test, for which each comparison was scored once."""

    content: dict[str, Any]
    """Content of `results.json`, see `build_results`."""
    pairs: dict[str, PairScores] = field(default_factory=dict)
    """By row of `ROWS`, the scored pairs: two clean faces in `CLEAN_ROWS`, else a clean and a masked one.

    Rows without pairs are left out.
    """
    embeddings: dict[str, EmbeddingSet] = field(default_factory=dict)
    """By row of `ROWS`, the embeddings that were compared."""


def build_results(
    embeddings: Mapping[str, EmbeddingSet],
    restoration: Restoration,
    kinds: Sequence[str],
    provenance: Mapping[str, Any],
    protocol: AllPairs | None = None,
    mask_prediction: Mapping[str, Any] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Results:
    """Score all comparisons of a test.

    Args:
        embeddings: by row of `ROWS`; clean faces in `CLEAN_ROWS`, masked ones in the others. None in a test of stage 1.
        restoration: by source of the mask.
        kinds: names of the occluders, in the order of `EmbeddingSet.kind`.
        provenance: command, seeds, versions, hashes; its keys are placed beside those of `KEYS`.
        protocol: comparisons; default all pairs.
        mask_prediction: result of `MaskPredictionMetric.compute`.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Results whose content is the provenance and `KEYS`: `people` and `images` among the clean faces,
        `people_left_out` because of too many pairs, name of the `protocol`, `rows`, intervals of each of `DIFFERENCES`,
        `restoration` by source of the mask, `per_kind`, `per_coverage`, rows by tenth of the probes in order of
        coverage; and `mask_prediction`. Without embeddings they lack what needs some.

    Raises:
        ValueError: an unknown row, a row of the student without clean faces, a kind without name, provenance that would
            overwrite a result, or rows to be subtracted that scored different probes.
    """
    _check(embeddings, provenance)
    protocol = protocol or AllPairs()
    means = {source: scores["mean"] for source, scores in restoration.items()}
    predicted = {} if mask_prediction is None else {"mask_prediction": _mask_prediction(mask_prediction, kinds)}
    if not embeddings:
        per_kind = _per_kind({}, protocol, restoration, kinds)
        return Results({**provenance, "rows": {}, "restoration": means, "per_kind": per_kind, **predicted})
    if not any(name in embeddings for name in CLEAN_ROWS):  # a list of pairs that has only occluded images
        no_faces = next(iter(embeddings.values())).take(torch.zeros(0, dtype=torch.int64))
        embeddings = {**embeddings, "teacher_clean": no_faces, "student_clean": no_faces}
    narrowed = protocol.narrow(embeddings)
    masked = {name: (gallery_of(name, narrowed), narrowed[name]) for name in _MASKED_ROWS if name in narrowed}
    pairs, rows = _score_rows(narrowed, masked, protocol)
    people = len(torch.unique(narrowed["teacher_clean"].identity))
    content = {
        **provenance,
        "people": people,
        "people_left_out": len(torch.unique(embeddings["teacher_clean"].identity)) - people,
        "images": len(narrowed["teacher_clean"]),
        "protocol": type(protocol).__name__,
        "rows": rows,
        **_differences(pairs, replicates, seed),
        "restoration": means,
        "per_kind": _per_kind(masked, protocol, restoration, kinds),
        "per_coverage": _per_coverage(masked, protocol),
        **predicted,
    }
    return Results(content, pairs, narrowed)


def score_row(
    gallery: EmbeddingSet, probe: EmbeddingSet, protocol: AllPairs | None = None, pairs: PairScores | None = None
) -> dict[str, Any]:
    """Score the probes of a recogniser against its clean gallery.

    Args:
        gallery: clean faces.
        probe: masked faces.
        protocol: comparisons; default all pairs.
        pairs: result of `protocol.cross`, if it is known.

    Returns:
        `eer`, `auc`, `tar@...` and thresholds of the pairs that the protocol compares clean with masked; `accuracy` if
        it has folds; `tar_intervals`; identification scores; `pairs`, the numbers of genuine and impostor pairs;
        `masked_masked`, the same for pairs of two masked faces.
    """
    protocol = protocol or AllPairs()
    cross_repeats, within_repeats = protocol.repeats(probe)
    within = _pair_figures(protocol.within(probe), within_repeats)
    return {
        **_pair_figures(protocol.cross(gallery, probe) if pairs is None else pairs, cross_repeats),
        **protocol.identify(gallery, probe),
        "masked_masked": {name: within[name] for name in _MASKED_MASKED if name in within},
    }


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers of a row as `prefix/name`, for a logger; an accuracy over folds is represented by its mean."""
    plain = {**scores, "accuracy": scores["accuracy"]["mean"]} if "accuracy" in scores else scores
    return {f"{prefix}/{name}": float(value) for name, value in plain.items() if isinstance(value, int | float)}


def _check(embeddings: Mapping[str, EmbeddingSet], provenance: Mapping[str, Any]) -> None:
    if unknown := [name for name in embeddings if name not in ROWS]:
        raise ValueError(f"unknown rows {', '.join(unknown)}: choose among {', '.join(ROWS)}")
    clean = [name for name in embeddings if name in CLEAN_ROWS]
    if clean and "student_clean" not in clean and any(name.startswith("student") for name in embeddings):
        raise ValueError("the student's probes came without its gallery: embed the clean faces with the student too")
    if taken := set(provenance) & set(KEYS):
        raise ValueError(f"provenance holds {', '.join(sorted(taken))}, which the results hold already: rename it")


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
    for name in ROWS:
        if name in masked:
            scored = protocol.cross(*masked[name])
            figures[name] = score_row(*masked[name], protocol, scored)
        elif name in embeddings:
            gallery = embeddings[name]
            scored = protocol.within(gallery)
            identified = protocol.identify(gallery, gallery)
            figures[name] = {**_pair_figures(scored, protocol.repeats(gallery)[1]), **identified}
        else:
            continue
        if len(scored.same):
            pairs[name] = scored
    return pairs, figures


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


def _differences(pairs: Mapping[str, PairScores], replicates: int, seed: int) -> dict[str, Any]:
    @cache
    def figures_of(row: str, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return bootstrap_figures([[pairs[row]]], replicates, seed, names)

    differences: dict[str, Any] = {}
    for name, rows in DIFFERENCES.items():
        if not all(row in pairs for row in rows):
            continue
        first, second = (pairs[row] for row in rows)
        check_same_pairs(first, second)
        if len(torch.unique(torch.cat([first.first_identity, first.second_identity]))) < 2:
            continue  # there are no impostor pairs
        has_folds = first.fold is not None and len(torch.unique(first.fold)) > 1
        names = ("eer", "accuracy") if has_folds else ("eer",)
        one, other = (figures_of(row, names) for row in rows)
        differences[name] = {figure: paired_interval(one[figure], other[figure])._asdict() for figure in names}
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
    """Return `low` and `high` coverage and the `eer` of each row, for each tenth of the probes by coverage.

    The first row determines the edges for all. A tenth contains its lower edge, the last one also its upper edge. Equal
    coverages are never separated, so tenths may differ in size or be empty; empty ones and probes of unknown coverage
    are left out.
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
                errors[name] = {"eer": equal_error_rate(pairs.similarity, pairs.same)}
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
