"""A small plan in the working directory, run with a fake `deocc`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deocc.commands import ablate
from tests.commands.ablate.fake_deocc import FakeDeocc

PLAN: dict[str, Any] = {
    "jobs": 2,
    "seeds": [0],
    "folds": {
        name: {"data": {"face_set": {"init_args": {"fold": fold}}}} for fold, name in enumerate(("fold0", "fold1"))
    },
    "stage1": {"configs": ["one.yaml"], "overlay": {"trainer": {"max_epochs": 3}}},
    "stage2": {"configs": ["two.yaml"]},
    "variants": {"task": {"model": {"init_args": {"pair_weight": 0.0}}}, "masked": {}},
    "rows": {
        "a": {"title": "clean", "row": "teacher_clean"},
        "b": {"title": "teacher", "row": "teacher_masked"},
        "d": {"title": "student", "row": "student", "variant": "task"},
        "i": {"title": "masked", "row": "student", "variant": "masked"},
    },
    "compare": [{"first": "d", "second": "b", "claim": "It helps"}, {"first": "i", "second": "b"}],
}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDeocc:
    """The fake command, with `PLAN` and its configuration files in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("model: {class_path: One}\n")
    Path("two.yaml").write_text("model: {class_path: Two}\n")
    Path("three.yaml").write_text("data: {batch_size: 1}\n")
    write_plan()
    fake = FakeDeocc()
    monkeypatch.setattr(ablate, "_start_process", fake)
    return fake


def write_plan(**changes: Any) -> list[str]:
    """Write `plan.yaml` and return the arguments that name it."""
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return ["--config", "plan.yaml", "--run", "out"]
