"""Rows, table and file of the benchmark."""

import json
from pathlib import Path

import pytest

from bench import bench
from bench.kernels import batch_size, errors, measure_alone, measure_renderer, render_times
from bench.measuring import Row, in_own_process
from deocc.masking import list_kinds


def test_textbook_and_ours_agree() -> None:
    found = errors(32)
    assert found["value, relative difference"] < 1e-5
    assert found["gradient, relative difference"] < 1e-4


def test_measure_alone() -> None:
    row = measure_alone(64, max_anchors=8)
    assert row["what"] == "triplet relation, B = 64, 8 anchors"
    assert row["ours"] > 0 and row["ours_mib"] >= 0


def test_every_kind_is_timed() -> None:
    medians, memory = in_own_process(render_times, 64, 1)
    assert tuple(medians) == list_kinds()
    assert min(medians.values()) > 0 and memory > 0


def test_batch_stays_below_32_mib() -> None:
    assert [batch_size(size) for size in (64, 112, 256)] == [64, 64, 32]
    assert 4 * 3 * 256**2 * batch_size(256) < 2**25


def test_rate_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.kernels.in_own_process", lambda *_: ({"box": 1.0, "scarf": 3.0}, 7.0))
    *kinds, together = measure_renderer(112)
    assert [row["ours"] for row in kinds] == pytest.approx([64, 64 / 3])
    assert together["ours"] == pytest.approx(2 * 64 / 4)
    assert together["details"]["mean of the kinds' rates"] == pytest.approx((64 + 64 / 3) / 2)


def test_table_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = [
        {
            "what": "loss",
            "unit": "ms",
            "ours": 1.5,
            "reference": 30.0,
            "ratio": 20.0,
            "ours_mib": 3.0,
            "reference_mib": 4000.0,
        },
        {"what": "renderer", "unit": "faces/s", "ours": 12345.6},
    ]
    monkeypatch.setattr(bench, "measure", lambda: iter(rows))
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    bench.main()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert lines[2:] == [
        ["loss", "ms", "1.5", "30", "20", "3", "4,000"],
        ["renderer", "faces/s", "12,346", "", "", "", ""],
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == rows
    assert written["machine"]["cores"] >= 1
