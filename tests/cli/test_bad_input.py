"""Bad input gets one clear line that says what to do, exit code 2, and no traceback."""

from pathlib import Path

import pytest
import torch

from deocc.cli import main
from tests.conftest import ROOT

INPAINT, DISTILL = (["fit", "--config", str(ROOT / "configs" / name)] for name in ("inpaint.yaml", "distill.yaml"))


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `deocc` says to `words`: its one line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["trian"], ["'trian'", "fit", "test"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        ([*INPAINT, "--model.init_args.widht", "8"], ["widht"]),
        ([*INPAINT, "--trainer.max_epoks", "8"], ["max_epoks"]),
        ([*INPAINT, "--model.init_args.width", "seven"], ["width", "seven"]),
        ([*INPAINT, "--model.init_args.width", "7"], ["7", "multiple of 4"]),
        ([*INPAINT, "--model.init_args.teacher", "resnet"], ["'resnet'", "dlib_resnet"]),
        ([*INPAINT, "--model.init_args.teacher", "timm/resnet18"], ["trained weights", "teacher_weights"]),
        ([*INPAINT, "--model.init_args.teacher_weights", "nowhere.dat"], ["nowhere.dat"]),
        ([*INPAINT, "--model.init_args.adversarial", "lsgan"], ["lsgan", "hinge", "wgan"]),
        ([*INPAINT, "--data.kinds", "[surgical, veil]"], ["veil", "surgical", "strokes"]),
        ([*INPAINT, "--data.size", "8"], ["8", "32"]),
        ([*INPAINT, "--data.augmentation", "wild"], ["wild", "light"]),
        ([*DISTILL, "--model.init_args.inpainting_checkpoint", "nowhere"], ["nowhere", "deocc fit"]),
        ([*DISTILL, "--model.init_args.inpainting_checkpoint", "null", "--model.init_args.margin_type", "sphere"], ["sphere", "cosface"]),
        ([*DISTILL, "--model.init_args.inpainting_checkpoint", "null", "--model.init_args.beta", "2"], ["beta", "2"]),
        ([*DISTILL, "--model.init_args.inpainting_checkpoint", "null", "--model.init_args.student_input", "naked"], ["naked", "completed"]),
        (["test", "--checkpoint", "nowhere"], ["nowhere"]),
        (["test", "--checkpoint"], ["--checkpoint", "run folder"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_one_line(
    words: list[str], needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, *words)
    assert all(needle in line for needle in needles), line
    assert len(line) < 700, line


def test_no_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "deocc fit" in complaint(capsys, "test")
    assert "InpaintingModule" in complaint(capsys, *DISTILL)


def test_a_checkpoint_of_another_stage(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, *DISTILL, "--model.init_args.inpainting_checkpoint", str(stage2))
    assert "'distillation'" in line and "'inpainting'" in line


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_a_damaged_checkpoint(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    assert "broken.ckpt" in complaint(capsys, *DISTILL, "--model.init_args.inpainting_checkpoint", str(path))


def test_a_pickle_in_a_checkpoint_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": _Evil(tmp_path / "executed")}, path)
    assert "evil.ckpt" in complaint(capsys, *DISTILL, "--model.init_args.inpainting_checkpoint", str(path))
    assert not (tmp_path / "executed").exists()


class _Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)
