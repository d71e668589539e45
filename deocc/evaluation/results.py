"""The results file of a test run: the rows of the comparison, their differences with intervals, restoration, and where it all came from."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import paired_bootstrap_accuracy, paired_bootstrap_eer, tar_intervals
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import PairScores, equal_error_rate, fold_accuracy, verification_scores

DECILES = 10


def decile_edges(coverage: Tensor) -> Tensor:
    """(11,) float64: the 0th, 10th, ... 100th percentile of the known coverages (N,); NaN where none is known."""
    known = coverage[~coverage.isnan()].double()
    if len(known) == 0:
        return torch.full((DECILES + 1,), torch.nan, dtype=torch.float64)
    return known.quantile(torch.linspace(0, 1, DECILES + 1, dtype=torch.float64))


def coverage_deciles(coverage: Tensor, edges: Tensor | None = None) -> Tensor:
    """(N,) int64: the decile 0 to 9 of each coverage (N,), -1 for NaN, an unknown one.

    A decile holds its lower edge, the last one its upper edge too. Equal coverages are never parted: where many are equal, deciles differ
    in size and some are empty. Coverages beyond the edges fall into the first or last decile.

    >>> coverage_deciles(torch.tensor([0.3, torch.nan, 0.1, 0.2])).tolist()
    [9, -1, 0, 5]

    Args:
        coverage: (N,), NaN where unknown.
        edges: (11,) as of `decile_edges`, so that several sets are cut alike; None: those of `coverage`.
    """
    edges = decile_edges(coverage) if edges is None else edges
    decile = torch.bucketize(coverage.double(), edges[1:-1], right=True)
    return decile.masked_fill(coverage.isnan(), -1)


def by_coverage(probe: EmbeddingSet, edges: Tensor | None = None) -> dict[int, EmbeddingSet]:
    """The probes of each decile that has any, by its number; those of unknown coverage are left out. `edges` as in `coverage_deciles`."""
    decile = coverage_deciles(probe.coverage, edges)
    return {number: probe.take(decile == number) for number in torch.unique(decile[decile >= 0]).tolist()}


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
"""Every row that a test may yield, in order, with its title. The mask is the given one unless the title says otherwise. What the student
sees by it, a completed face or the masked one, is a setting of the run."""

CLEAN_ROWS = ("teacher_clean", "teacher_clean_predicted_mask", "student_clean", "student_clean_predicted_mask")
"""The rows that compare bare faces with bare faces. With a predicted mask they are what a user of photographs gets, to whom nobody says
that a face is bare."""

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
"""Which rows are subtracted from which."""

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
"""What a results file holds beside the provenance: what `build_results` returns, and `thresholds` (own data)."""

_MASKED = ("accuracy", "eer", "auc", "tar@1e-1", "tar@1e-2", "tar@1e-3", "tar@1e-4", "tar_intervals", "pairs")

Restoration = Mapping[str, Mapping[str, Any]]
"""By the source of the mask ("given_mask", "predicted_mask"): what `RestorationMetric.compute` returned."""


def clean_row(gallery: EmbeddingSet, protocol: AllPairs | None = None) -> dict[str, Any]:
    """The ceiling: clean against clean, as the protocol's `within` says; identification as in `score_row`."""
    protocol = protocol or AllPairs()
    return {**_scores(protocol.within(gallery), protocol.repeats(gallery)[1]), **protocol.identify(gallery, gallery)}


def score_row(gallery: EmbeddingSet, probe: EmbeddingSet, protocol: AllPairs | None = None) -> dict[str, Any]:
    """One row: a recogniser's clean gallery against its probes.

    `eer`, `auc`, `tar@...` and thresholds of the pairs that the protocol (default: all pairs) compares clean with masked, `accuracy` where
    it has folds; `tar_intervals`; what its `identify` gives; `masked_masked`: the pairs that it compares masked with masked. `pairs`: how
    many of each sort stand behind the first.
    """
    protocol = protocol or AllPairs()
    crossed, repeated = protocol.repeats(probe)
    masked = _scores(protocol.within(probe), repeated)
    return {
        **_scores(protocol.cross(gallery, probe), crossed),
        **protocol.identify(gallery, probe),
        "masked_masked": {name: masked[name] for name in _MASKED if name in masked},
    }


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
    """Build everything that the results file holds.

    Args:
        gallery_teacher: the teacher's embeddings of the clean faces.
        gallery_student: the student's; None where no student was tested.
        probes: by row of `ROWS`, without the clean ones; those that were evaluated.
        restoration: by source of the mask.
        kinds: names of the occluders, in the order in which `EmbeddingSet.kind` counts them.
        provenance: command, seeds, versions, hashes; its keys stand beside those of `KEYS`.
        protocol: what is compared; default every face with every other.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        predicted_mask_galleries: by "teacher" and "student", the embeddings of the clean faces by their predicted masks. They are the
            gallery of the probes with predicted masks, and rows of their own.

    Returns:
        `people` and `images` of the gallery that were scored, `people_left_out`, whose pairs would have been too many; the name of the
        `protocol`; `rows` by name; each of `DIFFERENCES` whose rows are there, as {"eer": interval} and, where the protocol has folds,
        {"accuracy": interval}; `restoration` by source; `per_kind` by name, each with its `rows` and `restoration`; `per_coverage`, the
        rows by how much of the crop is covered, in tenths of the probes; the provenance.

    Raises:
        ValueError: an unknown row, a student's row without a gallery, a kind without a name, provenance that would overwrite a result, or
            rows to be subtracted that scored different probes.
    """
    protocol = protocol or AllPairs()
    _check(probes, gallery_student, provenance)
    everybody = len(torch.unique(gallery_teacher.identity))
    clean = {"teacher_clean": gallery_teacher} | (
        {"student_clean": gallery_student} if gallery_student is not None else {}
    )
    clean |= {f"{name}_clean_predicted_mask": gallery for name, gallery in (predicted_mask_galleries or {}).items()}
    narrowed = protocol.narrow({**clean, **probes})
    clean = {name: narrowed[name] for name in CLEAN_ROWS if name in narrowed}
    compared = {name: (_gallery_of(name, clean), narrowed[name]) for name in ROWS if name in probes}
    scored = {name: clean_row(gallery, protocol) for name, gallery in clean.items()}
    scored |= {name: score_row(*sets, protocol) for name, sets in compared.items()}
    people = len(torch.unique(clean["teacher_clean"].identity))
    return {
        **provenance,
        "people": people,
        "people_left_out": everybody - people,
        "images": len(clean["teacher_clean"]),
        "protocol": type(protocol).__name__,
        "rows": {name: scored[name] for name in ROWS if name in scored},
        **_differences(clean, compared, protocol, replicates, seed),
        "restoration": {source: scores["mean"] for source, scores in restoration.items()},
        "per_kind": _per_kind(compared, protocol, restoration, kinds),
        "per_coverage": _per_coverage(compared, protocol),
    }


def _gallery_of(row: str, clean: Mapping[str, EmbeddingSet]) -> EmbeddingSet:
    """The clean faces that a row's probes are compared with: the same recogniser's, by the same source of masks where that is there."""
    name = f"{row.split('_')[0]}_clean"
    predicted = f"{name}_predicted_mask"
    return clean[predicted] if row.endswith("_predicted_mask") and predicted in clean else clean[name]


def build_restoration_results(
    restoration: Restoration, kinds: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """As `build_results`, of a test that embedded nothing: no rows, no differences.

    Raises:
        ValueError: a kind without a name, or provenance that would overwrite a result.
    """
    _check({}, None, provenance)
    means = {source: scores["mean"] for source, scores in restoration.items()}
    return {**provenance, "rows": {}, "restoration": means, "per_kind": _per_kind({}, AllPairs(), restoration, kinds)}


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all. What is not a finite number becomes null; a path becomes text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results), indent=2, allow_nan=False, default=str)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _scores(pairs: PairScores, repeats: float) -> dict[str, Any]:
    """Figures of pairs of which so many show the same two images; a rate that the images cannot support is NaN."""
    genuine = int(pairs.same.sum())
    accuracy = {} if pairs.fold is None else {"accuracy": fold_accuracy(pairs)._asdict()}
    intervals = tar_intervals(pairs.similarity, pairs.same, repeats=repeats)
    return {
        **verification_scores(pairs.similarity, pairs.same),
        **{f"tar@{name}": interval["tar"] for name, interval in intervals.items()},
        **accuracy,
        "tar_intervals": intervals,
        "pairs": {"same": genuine, "different": len(pairs.same) - genuine},
        "people": len(torch.unique(torch.cat([pairs.first_person, pairs.second_person]))),
    }


def _differences(
    clean: Mapping[str, EmbeddingSet],
    compared: Mapping[str, tuple[EmbeddingSet, EmbeddingSet]],
    protocol: AllPairs,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    wanted = {name: both for name, both in DIFFERENCES.items() if set(both) <= {*clean, *compared}}
    pairs: dict[str, PairScores] = {}
    for row in dict.fromkeys(row for both in wanted.values() for row in both):
        pairs[row] = protocol.within(clean[row]) if row in clean else protocol.cross(*compared[row])
    differences: dict[str, Any] = {}
    for name, (first, second) in wanted.items():
        differences[name] = {"eer": paired_bootstrap_eer(pairs[first], pairs[second], replicates, seed)._asdict()}
        fold = pairs[first].fold
        if fold is not None and len(torch.unique(fold)) > 1:
            interval = paired_bootstrap_accuracy(pairs[first], pairs[second], replicates, seed)
            differences[name]["accuracy"] = interval._asdict()
    return differences


def _per_kind(
    rows: Mapping[str, tuple[EmbeddingSet, EmbeddingSet]],
    protocol: AllPairs,
    restoration: Restoration,
    kinds: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """The rows and the restoration of each kind that was seen."""
    seen = {kind for _, probe in rows.values() for kind in probe.kind.tolist()} | {
        kind for scores in restoration.values() for kind in scores["per_kind"]
    }
    if max(seen, default=-1) >= len(kinds):
        raise ValueError(
            f"kind {max(seen)} was evaluated but only {len(kinds)} kinds are named: give all names, in order"
        )
    return {
        kinds[kind]: {
            "rows": {name: score_row(gallery, probe.select(kind), protocol) for name, (gallery, probe) in rows.items()},
            "restoration": {
                source: scores["per_kind"][kind] for source, scores in restoration.items() if kind in scores["per_kind"]
            },
        }
        for kind in sorted(seen - {-1})
    }


def _per_coverage(rows: Mapping[str, tuple[EmbeddingSet, EmbeddingSet]], protocol: AllPairs) -> list[dict[str, Any]]:
    """For each tenth of the probes by rising coverage: `low` and `high` coverage and by row its `eer`; empty where no coverage is known."""
    if not rows:
        return []
    edges = decile_edges(next(iter(rows.values()))[1].coverage)
    parts = {name: (gallery, by_coverage(probe, edges)) for name, (gallery, probe) in rows.items()}
    deciles = sorted({decile for _, tenths in parts.values() for decile in tenths})

    def error(gallery: EmbeddingSet, probe: EmbeddingSet) -> float:
        return equal_error_rate(*protocol.cross(gallery, probe)[:2])

    return [
        {
            "low": float(edges[decile]),
            "high": float(edges[decile + 1]),
            "rows": {
                name: {"eer": error(gallery, tenths[decile])}
                for name, (gallery, tenths) in parts.items()
                if decile in tenths
            },
        }
        for decile in deciles
    ]


def _check(
    probes: Mapping[str, EmbeddingSet], gallery_student: EmbeddingSet | None, provenance: Mapping[str, Any]
) -> None:
    allowed = [name for name in ROWS if name not in CLEAN_ROWS]
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
