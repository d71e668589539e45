"""The page of the ablation quotes the numbers of its run."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.ablation_page import claim_lines, main

FIGURES = {"eer": {"estimate": -0.0123, "low": -0.02, "high": -0.004}, "verdict": "holds"}
SUMMARY: dict[str, Any] = {
    "plan": {"run": "/somewhere"},
    "folds": ["a"],
    "comparisons": [
        {"first": "c", "second": "b", "claim": "It helps", "runs": 1, "of": 1, "masks": {"given": FIGURES}},
        {"first": "h", "second": "b", "claim": "It helps more", "runs": 1, "of": 4},
    ],
    "runs": {"task-a-seed0": {"command": "deocc test /somewhere", "seed": 0}},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as `deocc ablate` leaves it."""
    folder = tmp_path / "run"
    for half, step in (("a", 379), ("b", 319)):
        trained = folder / f"task-{half}-seed0"
        trained.mkdir(parents=True)
        (trained / "results.json").write_text("{}")
        (trained / "config.yaml").write_text("trainer: {max_epochs: 7}")
        (trained / "metrics.csv").write_text(f"epoch,step,train/x\n0,19,1.0\n6,{step},1.0\n")
    (folder / "ablation.json").write_text(json.dumps(SUMMARY))
    (folder / "table.md").write_text("| the table |\n")
    for name in ("bars.svg", "bars.png", "losses.svg", "losses.png"):
        (folder / name).write_text(name)
    return folder


def test_claims() -> None:
    first, second = claim_lines(SUMMARY).splitlines()
    expected = "- It helps (c against b): given mask: **holds** (EER -1.23 points, -2.00 to -0.40)."
    assert first == expected
    assert second == "- It helps more (h against b): unknown, 1 of 4 runs."


def test_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages"
    assert main(["--run", str(run), "--pages", str(pages)]) == 0
    text = (pages / "ablation.md").read_text()
    assert capsys.readouterr().out.strip() == str(pages / "ablation.md")
    assert "**Only half a has been tested" in text, "the plan has two"
    assert "| the table |" in text and "7 epochs (last logged step 319 to 379)" in text and claim_lines(SUMMARY) in text
    assert (pages / "lfw" / "ablation_losses.png").read_text() == "losses.png"
    kept = (pages / "lfw" / "ablation.json").read_text()
    assert json.loads(kept)["runs"] == {"task-a-seed0": {"seed": 0}} and "/somewhere" not in kept


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--run", str(tmp_path), "--pages", str(tmp_path)])
    assert end.value.code == 2 and "run deocc ablate --config lfw/ablation first" in capsys.readouterr().err
