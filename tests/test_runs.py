"""Run folders, and configurations by name."""

from pathlib import Path

import pytest

from deocc import runs
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_find_config_prefers_the_nearest() -> None:
    packaged = runs.find_config("trainer/gpu")
    assert packaged == runs.find_config("trainer/gpu.yaml") == ROOT / "configs/trainer/gpu.yaml"
    local = Path("configs/trainer/gpu.yaml")
    local.parent.mkdir(parents=True)
    local.touch()
    assert runs.find_config("trainer/gpu") == local
    Path("trainer").mkdir()
    Path("trainer/gpu").touch()
    assert runs.find_config("trainer/gpu") == Path("trainer/gpu")
    assert runs.find_config(str(ROOT / "configs/distill.yaml")) == ROOT / "configs/distill.yaml"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("distil", "distill, inpaint, ablation/..., data/"),
        ("/nowhere/distil.yaml", "distill, inpaint, ablation/..., data/"),
        ("../../x.yaml", "distill, inpaint, ablation/..., data/"),
        ("trainer/cpu", "trainer/accumulate, trainer/bf16, trainer/ddp,"),
    ],
)
def test_find_config_lists_names(name: str, known: str) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration") as error:
        runs.find_config(name)
    assert name in str(error.value)
    assert f"one of {known}" in str(error.value)


@pytest.mark.parametrize(
    ("monitored", "name"), [("deocc.modules.", "deocc.modules"), ("DistillationModule", "DistillationModule")]
)
def test_newest_run_names_what_is_missing(monitored: str, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^no trained run of {name} below /"):
        runs.newest_run(monitored)


def test_series_ends_at_the_first_free_folder() -> None:
    wanted = Path("runs/a")
    assert runs.series(wanted) == ([], wanted)
    (wanted / runs.CHECKPOINTS).mkdir(parents=True)
    Path("runs/a-2").mkdir()
    Path("runs/a-2", runs.CONFIG).touch()
    Path("runs/a-3").mkdir()  # without a run
    assert runs.series(wanted) == ([wanted, Path("runs/a-2")], Path("runs/a-3"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, {})),
        ("data: {}", ("OrlFaces", {})),
        ("data: {face_set: deocc.data.LfwFaces}", ("LfwFaces", {})),
        ("data: {face_set: {class_path: a.B, init_args: {root: x}}}", ("B", {"root": "x"})),
    ],
)
def test_face_set_of_reads_the_configuration(text: str | None, expected: tuple[object, object]) -> None:
    if text is not None:
        Path(runs.CONFIG).write_text(text)
    assert runs.face_set_of(Path()) == expected
