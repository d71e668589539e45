"""Bad input gets one clear line that says what to do, exit code 2, and no traceback."""

import shutil
from pathlib import Path

import pytest
import torch

from deocc import runs
from deocc.cli import main
from tests.conftest import ROOT, SMALL, TINY_STAGE1, draw_folder

INPAINT, DISTILL = (["fit", "--config", str(ROOT / "configs" / name)] for name in ("inpaint.yaml", "distill.yaml"))
ALONE = ["--model.init_args.inpainting_checkpoint", "null", "--model.init_args.student_input", "masked"]


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
        ([*INPAINT, "--trainer.gradient_clip_val", "1"], ["gradient_clip_val", "manual optimization"]),
        ([*INPAINT, "--data.size", "8"], ["8", "32"]),
        ([*INPAINT, "--data.augmentation", "wild"], ["wild", "light"]),
        ([*DISTILL, "--model.init_args.inpainting_checkpoint", "nowhere"], ["nowhere", "deocc fit"]),
        ([*DISTILL, *ALONE, "--model.init_args.margin_type", "sphere"], ["sphere", "cosface"]),
        ([*DISTILL, *ALONE, "--model.init_args.beta", "2"], ["beta", "2"]),
        ([*DISTILL, *ALONE, "--model.init_args.student_input", "naked"], ["naked", "completed"]),
        (["test", "--checkpoint", "nowhere"], ["nowhere"]),
        (["test", "--checkpoint"], ["--checkpoint", "run folder"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_one_line(
    words: list[str],
    needles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
def test_a_damaged_checkpoint(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    assert "broken.ckpt" in complaint(capsys, *DISTILL, "--model.init_args.inpainting_checkpoint", str(path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine has")
def test_an_accelerator_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gpu" in complaint(capsys, *INPAINT, "--trainer.accelerator", "gpu")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
@pytest.mark.parametrize(
    "words",
    [["test", "--checkpoint", "run"], [*INPAINT, "--ckpt_path", "run/checkpoints/last.ckpt"]],
    ids=["test", "fit"],
)
def test_a_damaged_checkpoint_of_a_run(
    words: list[str],
    content: bytes,
    stage1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run/checkpoints").mkdir(parents=True)
    shutil.copy(stage1 / runs.CONFIG, Path("run") / runs.CONFIG)
    Path("run/checkpoints/last.ckpt").write_bytes(content)
    line = complaint(capsys, *words)
    assert "run/checkpoints/last.ckpt" in line and "damaged" in line


@pytest.mark.parametrize(
    "words",
    [["test", "--checkpoint", "run"], [*INPAINT, "--ckpt_path", "run/checkpoints/last.ckpt"]],
    ids=["test", "fit"],
)
def test_a_single_bit_of_a_checkpoint(
    words: list[str], stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a weight, where torch itself sees nothing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stage1, "run")
    path = Path("run/checkpoints/last.ckpt")
    Path("run/checkpoints/previous.ckpt").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    line = complaint(capsys, *words)
    assert "run/checkpoints/last.ckpt" in line and "checksum" in line and "damaged" in line


def test_an_unreadable_image_in_a_loader_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in draw_folder(Path("faces")).glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:5000])
    overlay = [
        "--config",
        str(ROOT / "configs/data/folder.yaml"),
        "--data.num_workers",
        "2",
        "--trainer.fast_dev_run",
        "true",
    ]
    line = complaint(capsys, *INPAINT, *overlay, *SMALL, *TINY_STAGE1)
    assert "Traceback" not in line and ".png" in line and line.startswith(("deocc: person", "deocc: faces/person")), (
        line
    )


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
