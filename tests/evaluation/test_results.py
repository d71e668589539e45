"""The results file, its rows, coverage deciles and tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deocc.evaluation import protocol
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.identification import rank1
from deocc.evaluation.protocol import Galleries
from deocc.evaluation.results import (
    CLEAN_ROWS,
    DIFFERENCES,
    KEYS,
    ROWS,
    build_restoration_results,
    build_results,
    by_coverage,
    clean_row,
    coverage_deciles,
    decile_edges,
    score_row,
)
from deocc.evaluation.tables import (
    coverage_cells,
    difference_cells,
    kind_cells,
    markdown_table,
    percent,
    row_cells,
    summary_table,
)
from deocc.evaluation.verification import equal_error_rate, pair_scores, within_scores
from deocc.files import write_json

KINDS = ("cloth", "hand", "never_seen")
SCORES = {"psnr": 25.0, "ssim": 0.8, "psnr_covered": 18.0, "ssim_covered": math.nan}
RESTORATION = {"given_mask": {"mean": SCORES, "per_kind": {0: SCORES, 1: SCORES}}}
PROVENANCE = {"command": "deocc test", "mask_seeds": [1, 2, 3], "run": Path("runs/demo")}


@pytest.fixture
def built(make_sets) -> dict:
    """Results of a test with every row."""
    gallery, masked = make_sets(3.0)
    gallery_student, student = make_sets(0.5, dimension=12)
    probes = {
        name: student if name.startswith("student") else masked for name in reversed(ROWS) if name not in CLEAN_ROWS
    }
    predicted = {"teacher": gallery, "student": gallery_student}
    return build_results(
        gallery,
        gallery_student,
        probes,
        RESTORATION,
        KINDS,
        PROVENANCE,
        replicates=20,
        predicted_mask_galleries=predicted,
    )


def test_results_are_complete(built: dict) -> None:
    assert list(built["rows"]) == list(ROWS)
    assert {"command", "mask_seeds", "run", *KEYS} - {"thresholds"} == set(built)
    assert (built["people"], built["images"]) == (6, 30)
    assert list(built["per_kind"]) == ["cloth", "hand"]
    for part in built["per_kind"].values():
        assert list(part["rows"]) == [name for name in ROWS if name not in CLEAN_ROWS]
        assert part["restoration"] == {"given_mask": SCORES}
    for name in DIFFERENCES:
        assert set(built[name]["eer"]) == {"estimate", "mean", "low", "high"}


def test_results_equal_their_functions(built: dict, make_sets) -> None:
    gallery, masked = make_sets(3.0)
    gallery_student, student = make_sets(0.5, dimension=12)
    row = built["rows"]["student"]
    assert row["eer"] == equal_error_rate(*pair_scores(gallery_student, student)[:2])
    assert row["rank1"] == rank1(gallery_student, student)
    assert row["masked_masked"]["eer"] == equal_error_rate(*within_scores(student)[:2])
    assert {"eer", "auc", "tar@1e-1", "tar@1e-4", "tar_intervals"} < set(row["masked_masked"])
    counts = torch.bincount(pair_scores(gallery_student, student).same.long())
    assert row["pairs"] == {"different": int(counts[0]), "same": int(counts[1])}
    assert built["rows"]["student_clean"]["eer"] == equal_error_rate(*within_scores(gallery_student)[:2])
    assert built["rows"]["teacher_clean"]["eer"] == equal_error_rate(*within_scores(gallery)[:2])
    assert built["per_kind"]["hand"]["rows"]["teacher_masked"]["eer"] == equal_error_rate(
        *pair_scores(gallery, masked.select(1))[:2]
    )
    difference = built["student_minus_teacher_masked"]["eer"]
    assert difference["estimate"] == pytest.approx(row["eer"] - built["rows"]["teacher_masked"]["eer"])
    assert difference["low"] <= difference["mean"] <= difference["high"] < 0


def test_results_with_predicted_galleries(make_sets) -> None:
    gallery, masked = make_sets(3.0)
    galleries = {"teacher": make_sets(3.0)[0], "student": make_sets(3.0)[0]}
    for seed, predicted in enumerate(galleries.values()):
        noise = torch.randn(predicted.embedding.shape, generator=torch.Generator().manual_seed(seed))
        predicted.embedding = torch.nn.functional.normalize(predicted.embedding + 0.5 * noise, dim=1)
    probes = {"student": masked, "student_predicted_mask": masked, "teacher_completed_predicted_mask": masked}
    built = build_results(gallery, gallery, probes, {}, KINDS, {}, replicates=5, predicted_mask_galleries=galleries)
    assert [name for name in built["rows"] if name in CLEAN_ROWS] == list(CLEAN_ROWS)
    for name, predicted in galleries.items():
        assert (
            built["rows"][f"{name}_clean_predicted_mask"]["eer"]
            == clean_row(predicted)["eer"]
            != built["rows"][f"{name}_clean"]["eer"]
        )
    expected = {
        "student": gallery,
        "student_predicted_mask": galleries["student"],
        "teacher_completed_predicted_mask": galleries["teacher"],
    }
    for name, compared in expected.items():
        assert built["rows"][name]["rank1"] == score_row(compared, masked)["rank1"]
        assert built["rows"][name]["eer"] == score_row(compared, masked)["eer"]
    difference = built["student_clean_predicted_mask_minus_teacher_clean"]["eer"]["estimate"]
    assert difference == pytest.approx(
        built["rows"]["student_clean_predicted_mask"]["eer"] - built["rows"]["teacher_clean"]["eer"]
    )


def test_results_of_stage_1(make_sets) -> None:
    gallery, masked = make_sets(3.0)
    built = build_results(
        gallery, None, {"teacher_masked": masked, "teacher_completed": masked}, RESTORATION, KINDS, {}, replicates=5
    )
    assert list(built["rows"]) == ["teacher_clean", "teacher_masked", "teacher_completed"]
    assert set(DIFFERENCES) & set(built) == {"teacher_completed_minus_teacher_masked"}


def test_results_of_unseen_kind_are_nan(make_sets) -> None:
    gallery, masked = make_sets(3.0)
    probes = {"teacher_masked": masked, "teacher_completed": masked.select(0)}
    with pytest.raises(ValueError, match="different pairs"):
        build_results(gallery, None, probes, {}, KINDS, {}, replicates=5)
    row = score_row(gallery, masked.select(9))
    assert math.isnan(row["eer"])
    assert math.isnan(row["rank1"])


def test_results_limit_the_number_of_pairs(make_sets, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, probe = make_sets(3.0)
    monkeypatch.setattr(protocol, "MAX_PAIRS", len(gallery) * len(probe) // 4)
    built = build_results(gallery, None, {"teacher_masked": probe}, {}, KINDS, {}, replicates=5)
    few: list[EmbeddingSet] = [members.take(members.identity < 3) for members in (gallery, probe)]
    assert (built["people"], built["people_left_out"]) == (3, 3)
    for scores, expected in (
        (built["rows"]["teacher_masked"], score_row(*few)),
        (built["rows"]["teacher_clean"], clean_row(few[0])),
    ):
        assert all(scores[name] == expected[name] for name in ("eer", "auc", "rank1", "pairs", "people"))
    assert built["per_kind"]["hand"]["rows"]["teacher_masked"]["eer"] == score_row(few[0], few[1].select(1))["eer"]


def test_intervals_count_image_pairs_once(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    intervals = score_row(gallery, probe)["tar_intervals"]
    different = 30 * 25  # pairs of images of two people, in either order
    assert intervals["1e-3"]["reason"] == f"not enough negatives: {different}, 1000 needed"
    alone = score_row(gallery, probe.select(0).take(torch.arange(30)))["tar_intervals"]
    spans = [part["1e-1"]["high"] - part["1e-1"]["low"] for part in (intervals, alone)]
    assert 0.7 < spans[0] / spans[1] < 1.4


@pytest.mark.parametrize(
    ("probe_names", "provenance", "message"),
    [
        (["teacher_clean"], {}, "unknown rows teacher_clean"),
        (["student"], {}, "without its gallery"),
        (["teacher_masked"], {"rows": 1}, "provenance holds rows"),
        (["teacher_masked"], {}, "kind 1 was evaluated but only 1 kinds are named"),
    ],
)
def test_results_reject_bad_input(make_sets, probe_names: list[str], provenance: dict, message: str) -> None:
    gallery, masked = make_sets(3.0)
    with pytest.raises(ValueError, match=message):
        build_results(gallery, None, dict.fromkeys(probe_names, masked), {}, KINDS[:1], provenance)


def test_restoration_results_alone() -> None:
    found = build_restoration_results(RESTORATION, KINDS, {"command": "x"})
    parts = {kind: {"rows": {}, "restoration": {"given_mask": SCORES}} for kind in KINDS[:2]}
    assert found == {"command": "x", "rows": {}, "restoration": {"given_mask": SCORES}, "per_kind": parts}
    assert [line.split()[0] for line in summary_table(found).splitlines() if "25.00" in line] == ["all"]
    with pytest.raises(ValueError, match="provenance holds per_kind"):
        build_restoration_results({}, KINDS, {"per_kind": 1})
    with pytest.raises(ValueError, match="kind 1 was evaluated but only 1 kinds"):
        build_restoration_results(RESTORATION, KINDS[:1], {})


def test_results_by_coverage_decile(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    probe.coverage = torch.linspace(0.1, 0.5, len(probe))
    tenths = build_results(gallery, None, {"teacher_masked": probe}, {}, KINDS, {}, replicates=5)["per_coverage"]
    assert [part["low"] for part in tenths] == pytest.approx([0.1 + 0.04 * tenth for tenth in range(10)])
    assert [part["high"] for part in tenths] == pytest.approx([0.14 + 0.04 * tenth for tenth in range(10)])
    for tenth, part in enumerate(tenths):
        members = probe.take(torch.arange(len(probe)) * 10 // len(probe) == tenth)
        assert part["rows"] == {"teacher_masked": {"eer": equal_error_rate(*pair_scores(gallery, members)[:2])}}
    header, body = coverage_cells({"per_coverage": tenths})
    assert header == ["covered % of the crop", ROWS["teacher_masked"]] and body[0][0] == "10.00 to 14.00"
    assert body[0][1] == percent(tenths[0]["rows"]["teacher_masked"]["eer"])


def test_results_without_masked_rows(make_sets) -> None:
    found = build_results(make_sets(3.0)[0], None, {}, {}, KINDS, {})
    assert (list(found["rows"]), found["per_coverage"], found["per_kind"]) == (["teacher_clean"], [], {})


def test_results_of_named_galleries(make_sets) -> None:
    gallery, probe = make_sets(3.0)
    galleries = Galleries({"one": np.arange(6) * 5 + 101, "two": np.arange(6) * 5 + 102})
    found = build_results(gallery, None, {"teacher_masked": probe}, {}, KINDS, {}, galleries, replicates=5)
    row, header = found["rows"]["teacher_masked"], row_cells(found)[0]
    assert header[-3:] == ["rank-1 % one", "rank-1 % two", "masked-masked EER %"]
    assert row_cells(found)[1][1][-3:-1] == [percent(row["rank1_one"]), percent(row["rank1_two"])]
    assert kind_cells(found)[1][0][0].startswith("cloth")


def test_write_json_is_strict_json(built: dict, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, built | {"hash": torch.tensor([1, 2])})
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["restoration"]["given_mask"]["ssim_covered"] is None
    assert read["rows"]["student"]["eer"] == built["rows"]["student"]["eer"]
    assert (read["run"], read["hash"]) == ("runs/demo", [1, 2])
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_write_json_failure_keeps_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    loop: dict = {}
    loop["self"] = loop
    with pytest.raises(RecursionError):
        write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}


def test_tables_show_percent_and_missing(built: dict, tmp_path: Path) -> None:
    built["rows"]["student"].update({"eer": 0.01234, "tar@1e-3": math.nan})
    lines = [line for line in summary_table(built).splitlines() if line.startswith("student (given mask)")]
    assert lines[0].split()[3] == "1.23"
    assert "n/a" in lines[0]
    assert all(title in summary_table(built) and title in markdown_table(built) for title in ROWS.values())
    write_json(tmp_path / "results.json", built)
    assert markdown_table(json.loads((tmp_path / "results.json").read_text())) == markdown_table(built)


def test_summary_table_is_aligned(built: dict) -> None:
    head = summary_table(built).split("\n\n")[0].splitlines()
    assert len({len(line) for line in head}) == 1


def test_difference_cells_are_signed(built: dict) -> None:
    built["student_minus_teacher_masked"]["eer"] = {"estimate": -0.05, "mean": -0.05, "low": -0.075, "high": 0.01}
    assert difference_cells(built)[1][list(DIFFERENCES).index("student_minus_teacher_masked")][1:] == [
        "-5.00",
        "-7.50 to +1.00",
    ]


def test_decile_edges_equal_numpy() -> None:
    coverage = torch.rand(57, generator=torch.Generator().manual_seed(0))
    coverage[::5] = torch.nan
    np.testing.assert_allclose(
        decile_edges(coverage).numpy(), np.nanpercentile(coverage.double().numpy(), np.arange(0, 101, 10)), atol=1e-12
    )


def test_deciles_of_distinct_coverages() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert coverage_deciles(order / 100).tolist() == (order // 5).tolist()


def test_deciles_keep_ties_together() -> None:
    assert coverage_deciles(torch.tensor([0.2] * 30 + [0.4] * 10)).tolist() == [7] * 30 + [9] * 10


def test_deciles_of_given_edges_and_nan() -> None:
    edges = torch.linspace(0.1, 0.6, 11, dtype=torch.float64)
    assert coverage_deciles(torch.tensor([0.0, 0.16, torch.nan, 0.6, 0.9]), edges).tolist() == [0, 1, -1, 9, 9]
    assert coverage_deciles(torch.full((3,), torch.nan)).tolist() == [-1] * 3


def test_decile_edges_without_coverage() -> None:
    edges = decile_edges(torch.full((3,), torch.nan))
    assert edges.shape == (11,) and edges.dtype == torch.float64 and edges.isnan().all()


def test_by_coverage_uses_given_edges(make_sets) -> None:
    _, probe = make_sets(1.0)
    probe.coverage = torch.linspace(0.1, 0.5, len(probe))
    assert list(by_coverage(probe, torch.linspace(0.0, 1.0, 11, dtype=torch.float64))) == [1, 2, 3, 4, 5]


def test_by_coverage_skips_unknown(make_sets) -> None:
    _, probe = make_sets(1.0)
    assert by_coverage(probe) == {}
    probe.coverage = torch.linspace(0.1, 0.5, len(probe))
    probe.coverage[:10] = torch.nan
    parts = by_coverage(probe)
    assert list(parts) == list(range(10))
    assert sum(len(part) for part in parts.values()) == len(probe) - 10
    assert all(float(parts[i].coverage.max()) < float(parts[i + 1].coverage.min()) for i in range(9))
