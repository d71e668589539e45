"""Rows, table and file of the benchmark."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import bench
from bench.kernels import (
    batch_size,
    embedder_times,
    errors,
    mask_picture,
    measure_alone,
    measure_embedder,
    measure_renderer,
    relation_times,
    render_times,
    warp_masks,
)
from bench.measuring import Pairs, Row, in_own_process
from deocc.geometry import TEMPLATES
from deocc.masking import list_kinds
from deocc.modules.precision import has_bfloat16_instructions


@pytest.mark.parametrize("name", ["pair relation", "triplet relation"])
def test_textbook_and_ours_agree(name: str) -> None:
    found = errors(name, 32)
    assert found["value, relative difference"] < 1e-5
    assert found["gradient, relative difference"] < 1e-4


def test_relation_is_timed_idle_and_loaded() -> None:
    for pairs in in_own_process(relation_times, "pair relation", 16, 2):
        assert len(pairs.ours) == len(pairs.reference) == 2
        assert min(*pairs.ours, *pairs.reference) > 0


def test_measure_alone() -> None:
    row = measure_alone(64, max_anchors=8)
    assert row["what"] == "triplet relation, B = 64, 8 anchors"
    assert row["ours"] > 0 and row["ours_mib"] >= 0


def test_every_kind_is_timed() -> None:
    taken, reference, memory = in_own_process(render_times, 64, 1)
    assert tuple(taken) == list_kinds()
    assert min(reference + [each for seconds in taken.values() for each in seconds]) > 0 and memory > 0


def test_batch_stays_below_32_mib() -> None:
    assert [batch_size(size) for size in (64, 112, 256)] == [64, 64, 32]
    assert 4 * 3 * 256**2 * batch_size(256) < 2**25


def test_rate_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"surgical": [1.0, 1.0], "scarf": [3.0, 3.0]}
    monkeypatch.setattr("bench.kernels.in_own_process", lambda *_: (taken, [4.0, 4.0], 7.0))
    surgical, together = measure_renderer(112)
    assert (surgical["ours"], surgical["reference"], surgical["ratio"]) == pytest.approx((64, 16, 4))
    assert (together["ours"], together["ratio"], together["ours_mib"]) == pytest.approx((2 * 64 / 4, 2, 7))
    assert together["details"] == pytest.approx({"surgical": 64, "scarf": 64 / 3})


def test_reference_renderer_covers_mouth() -> None:
    landmarks = TEMPLATES["canonical"].tensor(112).numpy()
    face = np.full((3, 112, 112), -1, np.float32)
    (masked, mask), _ = warp_masks(np.stack([face, face]), mask_picture(), landmarks)
    assert masked.shape == face.shape and mask.shape == (1, 112, 112)
    assert np.array_equal(masked[:, mask[0] == 0], face[:, mask[0] == 0])
    columns, rows = landmarks.round().astype(int).T
    assert not mask[0, rows[:2], columns[:2]].any() and mask[0, rows[2:], columns[2:]].all()
    assert masked[:, rows[3], columns[3]] == pytest.approx(np.array([158, 204, 230]) / 127.5 - 1)


def test_embedder_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, formats, precisions = in_own_process(embedder_times, 1, 1)
    assert min(*threads[0].ours, *threads[1].reference, *formats.reference) > 0
    assert (precisions is not None) == has_bfloat16_instructions()
    found = (Pairs([1.0], [1.5]), Pairs([2.0], [2.4])), Pairs([1.5], [1.8])
    expected = [(1.5, 1.2), (pytest.approx(1.2), None)]
    for low, ratios in (None, expected), (Pairs([1.0], [1.4]), [*expected, (1.4, None)]):
        monkeypatch.setattr("bench.kernels.in_own_process", lambda *_, low=low: (*found, low))
        rows = measure_embedder()
        assert [(row["ratio"], row.get("loaded_ratio")) for row in rows] == ratios


def test_table_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = [
        {
            "what": "loss",
            "unit": "ms",
            "ours": 1.5,
            "reference": 30.0,
            "loaded": 3.5,
            "ratio": 20.0,
            "loaded_ratio": 18.0,
            "ours_mib": 3.0,
            "reference_mib": 4000.0,
        },
        {"what": "renderer", "unit": "faces/s", "ours": 12345.6},
    ]
    monkeypatch.setattr(bench, "measure", lambda: iter(rows))
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    bench.main([])
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert lines[2:] == [
        ["loss", "ms", "1.5", "3.5", "30", "20", "18", "3", "4,000"],
        ["renderer", "faces/s", "12,346", "", "", "", "", "", ""],
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == rows
    assert written["machine"]["cores"] >= 1
