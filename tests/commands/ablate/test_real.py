"""A small ablation with real trainings and tests in separate processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, run_deocc

TINY = {"data": {"size": 64, "batch_size": 4, "kinds": ["surgical"], "test_seeds": [1]}, "trainer": {"max_epochs": 1}}
SHORT = {**TINY, "trainer": {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "log_every_n_steps": 1}}
SMALL_NETWORKS = {"model": {"init_args": {"width": 8, "discriminator_width": 8, "segmenter_width": 8}}}
PLAN: dict[str, Any] = {
    "jobs": 2,
    "stage1": {"configs": ["configs/inpaint.yaml"], "overlay": SHORT | SMALL_NETWORKS},
    "stage2": {"configs": ["configs/distill.yaml"], "overlay": SHORT},
    "variants": {"task": {"model": {"init_args": {"instance_weight": 0.0, "pair_weight": 0.0, "triplet_weight": 0.0}}}},
    "rows": {
        "b": {"title": "teacher, masked input", "row": "teacher_masked"},
        "d": {"title": "student, completed: task only", "row": "student", "variant": "task"},
    },
    "compare": [{"first": "d", "second": "b"}],
}


@pytest.mark.slow
def test_ablation_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    argv = ["ablate", "--config", "plan.yaml", "--run", "runs/small"]
    run_deocc(*argv)
    assert "0 of 3 runs are done, 3 to go" in capsys.readouterr().out
    run_deocc(*argv)
    assert "3 of 3 runs are done, 0 to go" in capsys.readouterr().out
    run = tmp_path / "runs/small"
    assert "student, completed: task only" in (run / "table.md").read_text()
    assert {"bars.svg", "bars.png", "losses.svg", "losses.png", "ablation.json"} <= {
        path.name for path in run.iterdir()
    }
    tested = json.loads((run / "task-seed0" / "results.json").read_text())
    assert f"{100 * tested['rows']['student']['eer']:.2f}" in (run / "table.md").read_text()


@pytest.mark.slow
def test_shared_outputs_change_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants, of which the second reads what the first one's networks computed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    files: list[int] = []
    monkeypatch.setattr("shutil.rmtree", lambda folder: files.append(len(list(Path(folder).rglob("*.pt")))))
    rows = []
    for number, share in enumerate((False, True)):
        variants = PLAN["variants"] | {"hard": {"model": {"init_args": {"beta": 0.0}}}}
        plan = {**PLAN, "variants": variants, "share_outputs": share, "jobs": 1}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        run_deocc("ablate", "--config", "plan.yaml", "--run", f"runs/{number}")
        results = [json.loads(Path(f"runs/{number}/{name}-seed0/results.json").read_text()) for name in variants]
        rows.append([each["rows"] for each in results])
    assert rows[0] == rows[1]
    one_run = len(list(Path("runs/1/.shared-outputs").rglob("*.pt")))
    assert files == [one_run] and one_run > 0
    used = yaml.safe_load(Path("runs/1/hard-seed0/config.yaml").read_text())["trainer"]["callbacks"]
    assert any("SharedOutputsCallback" in callback["class_path"] for callback in used)
