"""Rows, differences, kinds and coverages of a test equal the functions that score them; each comparison runs once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deocc.evaluation import protocol
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs, Galleries, ListedPairs, cmc
from deocc.evaluation.report import kind_cells, percent, row_cells, summary_table
from deocc.evaluation.results import CLEAN_ROWS, DIFFERENCES, KEYS, ROWS, Results, build_results, flat_scores, score_row
from deocc.evaluation.verification import PairScores, equal_error_rate
from deocc.files import write_json
from tests.evaluation.conftest import MakeSets

KINDS = ("cloth", "hand", "never_seen")
SCORES = {"psnr": 25.0, "ssim": 0.8, "psnr_covered": 18.0, "ssim_covered": math.nan}
RESTORATION = {"given_mask": {"mean": SCORES, "per_kind": {0: SCORES, 1: SCORES}}}
PROVENANCE = {"command": "deocc test", "mask_seeds": [1, 2, 3], "run": Path("runs/demo")}


def build(embeddings: dict[str, EmbeddingSet], **settings: Any) -> Results:
    return build_results(
        embeddings, **{"restoration": {}, "kinds": KINDS, "provenance": {}, "replicates": 5, **settings}
    )


@pytest.fixture
def embeddings(make_sets: MakeSets) -> dict[str, EmbeddingSet]:
    """All rows; the galleries with predicted masks differ from those without."""
    sets = {"teacher": make_sets(3.0), "student": make_sets(0.5, dimension=12), "judge": make_sets(2.0, dimension=9)}
    chosen = {name: sets[name.split("_")[0]][name not in CLEAN_ROWS] for name in reversed(ROWS)}
    for seed, name in enumerate(("teacher_clean_predicted_mask", "student_clean_predicted_mask")):
        gallery = chosen[name]
        noise = torch.randn(gallery.embedding.shape, generator=torch.Generator().manual_seed(seed))
        embedding = torch.nn.functional.normalize(gallery.embedding + 0.5 * noise, dim=1)
        chosen[name] = EmbeddingSet(embedding, gallery.identity, gallery.index, gallery.kind, gallery.seed)
    return chosen


@pytest.fixture
def built(embeddings: dict[str, EmbeddingSet]) -> Results:
    return build(embeddings, restoration=RESTORATION, provenance=PROVENANCE)


def test_results_are_complete(built: Results) -> None:
    content = built.content
    assert list(content["rows"]) == list(built.pairs) == list(ROWS)
    assert {*PROVENANCE, *KEYS} - {"thresholds"} == set(content)
    assert (content["people"], content["people_left_out"], content["images"]) == (6, 0, 30)
    assert list(content["per_kind"]) == ["cloth", "hand"]
    for part in content["per_kind"].values():
        assert list(part["rows"]) == [name for name in ROWS if name not in CLEAN_ROWS]
        assert part["restoration"] == {"given_mask": SCORES}
    for name in DIFFERENCES:
        assert set(content[name]["eer"]) == {"estimate", "mean", "low", "high"}


def test_each_comparison_is_scored_once(embeddings: dict[str, EmbeddingSet]) -> None:
    scored: list[int] = []

    class Counting(AllPairs):
        def cross(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> PairScores:
            scored.append(len(probe))
            return super().cross(gallery, probe)

        def within(self, members: EmbeddingSet) -> PairScores:
            scored.append(len(members))
            return super().within(members)

        def identify(self, gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, Any]:
            scored.append(len(probe))
            return super().identify(gallery, probe)

    build(embeddings, protocol=Counting())
    assert scored.count(180) == 3 * 8  # each row of masked faces: cross, within, identification
    assert scored.count(30) == 2 * 5  # each row of clean faces: within, identification


def test_rows_equal_their_functions(built: Results, embeddings: dict[str, EmbeddingSet]) -> None:
    rows, pairs = built.content["rows"], built.pairs
    for name, row in rows.items():
        own_masks = name.endswith("predicted_mask") and not name.startswith("judge")
        gallery = f"{name.split('_')[0]}_clean{'_predicted_mask' if own_masks else ''}"
        clean, probe = embeddings[gallery], embeddings[name]
        expected = AllPairs().within(clean) if name in CLEAN_ROWS else AllPairs().cross(clean, probe)
        assert torch.equal(pairs[name].similarity, expected.similarity)
        assert row["eer"] == equal_error_rate(*expected[:2])
        assert row["rank1"] == row["cmc"][0] == float(cmc(clean, probe, 1)[0])
        assert row["pairs"] == {"same": int(expected.same.sum()), "different": int((~expected.same).sum())}
        if name not in CLEAN_ROWS:
            assert row == score_row(clean, probe)
            assert row["masked_masked"]["eer"] == equal_error_rate(*AllPairs().within(probe)[:2])
            assert {"eer", "auc", "tar@1e-1", "tar@1e-4", "tar_intervals"} < set(row["masked_masked"])
            of_kind = built.content["per_kind"]["hand"]["rows"][name]
            assert of_kind["eer"] == equal_error_rate(*AllPairs().cross(clean, probe.take(probe.kind == 1))[:2])
    assert rows["teacher_clean"]["eer"] != rows["teacher_clean_predicted_mask"]["eer"]
    for name, (first, second) in DIFFERENCES.items():
        assert built.content[name]["eer"]["estimate"] == pytest.approx(rows[first]["eer"] - rows[second]["eer"])
    interval = built.content["student_minus_teacher_masked"]["eer"]
    assert interval["low"] <= interval["mean"] <= interval["high"] < 0


def test_predicted_masks_use_the_plain_gallery(embeddings: dict[str, EmbeddingSet]) -> None:
    """If there is no gallery with predicted masks."""
    few = {name: embeddings[name] for name in ("teacher_clean", "student_clean", "student_predicted_mask")}
    found = build(few).pairs["student_predicted_mask"]
    expected = AllPairs().cross(few["student_clean"], few["student_predicted_mask"])
    assert torch.equal(found.similarity, expected.similarity)


def test_results_of_the_teacher_alone(make_sets: MakeSets) -> None:
    gallery, masked = make_sets(3.0)
    rows = {"teacher_clean": gallery, "teacher_masked": masked, "teacher_completed": masked}
    content = build(rows).content
    assert list(content["rows"]) == list(rows)
    assert set(DIFFERENCES) & set(content) == {"teacher_completed_minus_teacher_masked"}
    alone = build({"teacher_clean": gallery}).content
    assert (list(alone["rows"]), alone["per_coverage"], alone["per_kind"]) == (["teacher_clean"], [], {})


def test_unseen_kind_is_nan(make_sets: MakeSets) -> None:
    gallery, masked = make_sets(3.0)
    with pytest.raises(ValueError, match="different pairs"):
        build({"teacher_clean": gallery, "teacher_masked": masked, "teacher_completed": masked.take(masked.kind == 0)})
    row = score_row(gallery, masked.take(masked.kind == 9))
    assert math.isnan(row["eer"]) and math.isnan(row["rank1"])


def test_number_of_pairs_is_limited(make_sets: MakeSets, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, probe = make_sets(3.0)
    monkeypatch.setattr(protocol, "MAX_PAIRS", len(gallery) * len(probe) // 4)
    found = build({"teacher_clean": gallery, "teacher_masked": probe})
    few = {
        name: members.take(members.identity < 3)
        for name, members in (("teacher_clean", gallery), ("teacher_masked", probe))
    }
    assert (found.content["people"], found.content["people_left_out"]) == (3, 3)
    assert {name: len(members) for name, members in found.embeddings.items()} == {name: len(few[name]) for name in few}
    expected = build(few).content
    for key in ("rows", "per_kind"):
        np.testing.assert_equal(found.content[key], expected[key])


def test_intervals_count_image_pairs_once(make_sets: MakeSets) -> None:
    gallery, probe = make_sets(3.0)
    intervals = score_row(gallery, probe)["tar_intervals"]
    different = 30 * 25  # pairs of images of two people, in either order
    assert intervals["1e-3"]["reason"] == f"not enough negatives: {different}, 1000 needed"
    alone = score_row(gallery, probe.take(probe.kind == 0).take(torch.arange(30)))["tar_intervals"]
    spans = [part["1e-1"]["high"] - part["1e-1"]["low"] for part in (intervals, alone)]
    assert 0.7 < spans[0] / spans[1] < 1.4


def test_occluded_faces_alone(embeddings: dict[str, EmbeddingSet]) -> None:
    """Of a list without bare images: pairs of two masked faces, for a judge too."""
    masked = {name: members for name, members in embeddings.items() if name not in CLEAN_ROWS}
    pairs = ListedPairs(*(np.array(column) for column in ([100, 101], [101, 105], [True, False], [0, 1])))
    content = build(masked, protocol=pairs).content
    assert content["images"] == content["people"] == 0 and set(content["rows"]) >= {"student_clean", *masked}
    for row in masked:
        assert content["rows"][row]["pairs"] == {"same": 0, "different": 0}
        assert content["rows"][row]["masked_masked"]["pairs"] == {"same": 6, "different": 6}


def test_restoration_alone() -> None:
    found = build({}, restoration=RESTORATION, provenance={"command": "x"})
    parts = {kind: {"rows": {}, "restoration": {"given_mask": SCORES}} for kind in KINDS[:2]}
    assert found.content == {"command": "x", "rows": {}, "restoration": {"given_mask": SCORES}, "per_kind": parts}
    assert not found.pairs and not found.embeddings
    assert [line.split()[0] for line in summary_table(found.content).splitlines() if "25.00" in line] == ["all"]


def test_mask_prediction_names_kinds() -> None:
    kinds = {kind: {"iou": 0.5, "recall": 0.6, "found": found} for kind, found in ((-1, 0.25), (0, 1.0), (2, 0.5))}
    scores = {"mean": {"iou": 0.7, "recall": 0.8, "found": 0.1}, "per_kind": kinds}
    found = build({}, mask_prediction=scores).content["mask_prediction"]
    masked = {"iou": 0.7, "recall": 0.8, "found": 0.75}  # the mean over two kinds
    assert found == {"per_kind": {"cloth": kinds[0], "never_seen": kinds[2]}, "masked": masked, "bare": {"found": 0.25}}
    bare = {"mean": {}, "per_kind": {-1: {"found": 0.0}}}
    assert build({}, mask_prediction=bare).content["mask_prediction"] == {"per_kind": {}, "bare": {"found": 0.0}}


def tenths(make_sets: MakeSets, coverage: torch.Tensor) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return the parts of a test by coverage, and the positions of the probes that each part should hold."""
    gallery, probe = make_sets(3.0)
    probe.coverage = coverage
    parts = build({"teacher_clean": gallery, "teacher_masked": probe}).content["per_coverage"]
    members = []
    for part in parts:
        last = part is parts[-1]
        inside = (coverage >= part["low"] - 1e-9) & ((coverage < part["high"] - 1e-9) | last)
        expected = equal_error_rate(*AllPairs().cross(gallery, probe.take(inside))[:2])
        assert part["rows"] == {"teacher_masked": {"eer": expected}}
        members.append(inside.nonzero().flatten().tolist())
    return parts, members


def test_coverage_tenths_equal_numpy(make_sets: MakeSets) -> None:
    coverage = torch.rand(180, generator=torch.Generator().manual_seed(0))
    coverage[::5] = torch.nan
    parts, members = tenths(make_sets, coverage)
    edges = np.nanpercentile(coverage.double().numpy(), np.arange(0, 101, 10))
    assert [part["low"] for part in parts] == pytest.approx(edges[:-1], abs=1e-12)
    assert [part["high"] for part in parts] == pytest.approx(edges[1:], abs=1e-12)
    assert sum(map(len, members)) == 144 and {len(part) for part in members} <= {14, 15}


def test_coverage_tenths_keep_ties(make_sets: MakeSets) -> None:
    parts, members = tenths(make_sets, torch.tensor([0.2] * 135 + [0.4] * 45))
    assert [part["low"] for part in parts] == pytest.approx([0.2, 0.4])
    assert [len(part) for part in members] == [135, 45]
    assert tenths(make_sets, torch.full((180,), torch.nan)) == ([], [])


def test_named_galleries_have_columns(make_sets: MakeSets) -> None:
    gallery, probe = make_sets(3.0)
    galleries = Galleries({"one": np.arange(6) * 5 + 101, "two": np.arange(6) * 5 + 102})
    found = build({"teacher_clean": gallery, "teacher_masked": probe}, protocol=galleries).content
    row, header = found["rows"]["teacher_masked"], row_cells(found)[0]
    assert header[-3:] == ["rank-1 % one", "rank-1 % two", "masked-masked EER %"]
    assert row_cells(found)[1][1][-3:-1] == [percent(row["rank1_one"]), percent(row["rank1_two"])]
    assert kind_cells(found)[1][0][0].startswith("cloth")


def test_results_are_strict_json(built: Results, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, built.content | {"hash": torch.tensor([1, 2])})
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["restoration"]["given_mask"]["ssim_covered"] is None
    assert read["rows"]["student"]["eer"] == built.content["rows"]["student"]["eer"]
    assert (read["run"], read["hash"]) == ("runs/demo", [1, 2])
    assert summary_table(read) == summary_table(built.content)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(RecursionError):
        write_json(path, loop)
    assert json.loads(path.read_text()) == read
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_flat_scores_are_numbers() -> None:
    scores = {"eer": 0.125, "tar_intervals": {}, "people": 3, "accuracy": {"mean": 0.9, "standard_error": 0.01}}
    assert flat_scores(scores, "test/student") == {
        "test/student/eer": 0.125,
        "test/student/people": 3.0,
        "test/student/accuracy": 0.9,
    }
    assert flat_scores({"eer": 0.125, "auc": 0.9}, "x") == {"x/eer": 0.125, "x/auc": 0.9}
