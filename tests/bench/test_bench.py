"""What the benchmark measures, and what it writes."""

import json
from pathlib import Path

import pytest

from bench import bench
from bench.measuring import Row, in_own_process
from bench.relations import alone, errors
from bench.renderer import batch_size, faces_per_second, times
from deocc.masking import list_kinds


def test_the_textbook_form_and_ours_agree_in_the_benchmark() -> None:
    found = errors(32)
    assert found["value, relative difference"] < 1e-5
    assert found["gradient, relative difference"] < 1e-4


def test_a_batch_alone_is_timed_with_its_peak() -> None:
    row = alone(64, max_vertices=8)
    assert row["what"] == "triplet relation, B = 64, 8 vertices"
    assert row["ours"] > 0 and row["ours_mib"] >= 0


def test_every_kind_of_occluder_is_timed() -> None:
    medians, memory = in_own_process(times, 64, 1)
    assert tuple(medians) == list_kinds()
    assert min(medians.values()) > 0 and memory > 0


def test_a_rendered_batch_never_takes_a_block_that_is_given_back_at_once() -> None:
    assert [batch_size(size) for size in (64, 112, 256)] == [64, 64, 32]
    assert 4 * 3 * 256**2 * batch_size(256) < 2**25


def test_all_kinds_together_are_faces_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.renderer.in_own_process", lambda *_: ({"box": 1.0, "scarf": 3.0}, 7.0))
    *kinds, together = faces_per_second(112)
    assert [row["ours"] for row in kinds] == pytest.approx([64, 64 / 3])
    assert together["ours"] == pytest.approx(2 * 64 / 4)
    assert together["details"]["mean of the kinds' rates"] == pytest.approx((64 + 64 / 3) / 2)


def test_the_table_and_the_file_hold_every_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
