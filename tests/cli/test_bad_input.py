"""Bad input gives one line that says what to do, exit code 2, and no traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deocc import runs
from deocc.cli import main
from tests.conftest import SMALL, TINY_STAGE1, draw_folder

INPAINT, DISTILL = ["fit", "--config", "inpaint"], ["fit", "--config", "distill"]
ALONE = ["--model.init_args.inpainting_checkpoint", "null", "--model.init_args.student_input", "masked"]
DEV_RUN = ["--trainer.fast_dev_run", "true"]
STAGE1 = "--model.init_args.inpainting_checkpoint"
READERS = [["test", "--checkpoint", "run"], [*INPAINT, "--ckpt_path", "run/checkpoints/last.ckpt"]]
Complain = Callable[..., str]


@pytest.fixture
def complain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complain:
    """Run `deocc` in an empty folder and return its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: ")]
        assert len(line) < 700 and "Traceback" not in line
        return line

    return run


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["trian"], ["'trian'", "fit", "test"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "distill"]),
        (["fit", "--config=trainer/cpu"], ["trainer/cpu", "trainer/gpu"]),
        ([*INPAINT, "--model.init_args.widht", "8"], ["widht"]),
        ([*INPAINT, "--trainer.max_epoks", "8"], ["max_epoks"]),
        ([*INPAINT, "--model.init_args.width", "seven"], ["width", "seven"]),
        ([*INPAINT, "--model.init_args.width", "7"], ["7", "multiple of 4"]),
        ([*INPAINT, "--model.init_args.teacher", "resnet"], ["'resnet'", "dlib_resnet"]),
        ([*INPAINT, "--model.init_args.teacher", "timm/resnet18"], ["trained weights", "teacher_weights"]),
        ([*INPAINT, "--model.init_args.teacher_weights", "nowhere.dat"], ["nowhere.dat"]),
        ([*INPAINT, "--model.init_args.adversarial", "lsgan"], ["lsgan", "hinge", "wgan"]),
        ([*INPAINT, "--data.kinds", "[surgical, veil]"], ["veil", "surgical", "strokes"]),
        ([*INPAINT, "--trainer.gradient_clip_val", "1"], ["gradient_clip_val", "model.init_args.gradient_clip"]),
        *(
            ([*INPAINT, *DEV_RUN, "--trainer.precision", precision], [precision, "32-true", "bf16-mixed"])
            for precision in ("16-true", "bf16-true", "64-true", "64")
        ),
        ([*INPAINT, "--data.size", "8"], ["8", "32"]),
        ([*INPAINT, "--data.augmentation", "wild"], ["wild", "light"]),
        ([*DISTILL, STAGE1, "nowhere"], ["nowhere", "deocc fit"]),
        ([*DISTILL, *ALONE, "--model.init_args.margin_type", "sphere"], ["sphere", "cosface"]),
        ([*DISTILL, *ALONE, "--model.init_args.beta", "2"], ["beta", "2"]),
        ([*DISTILL, *ALONE, "--model.init_args.student_input", "naked"], ["naked", "completed"]),
        (["test", "--checkpoint", "nowhere"], ["nowhere"]),
        (["test", "--checkpoint"], ["--checkpoint", "run folder"]),
        (["fit", "--resume", "nowhere"], ["nowhere", "config.yaml"]),
        (["test"], ["deocc fit"]),
        (DISTILL, ["InpaintingModule", "deocc fit"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_one_line(argv: list[str], parts: list[str], complain: Complain) -> None:
    line = complain(*argv)
    assert all(part in line for part in parts), line


def test_predict_with_options_first(stage1: Path, complain: Complain) -> None:
    line = complain("predict", "--checkpoint", str(stage1), "photos")
    assert "deocc predict PHOTOS..." in line
    line = complain("predict", "--checkpoint", str(stage1), "--out", "a", "photos")
    assert "give a stage-2 run" in line


def test_checkpoint_of_another_stage(stage2: Path, complain: Complain) -> None:
    line = complain(*DISTILL, STAGE1, str(stage2))
    assert "'distillation'" in line and "'inpainting'" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine has")
def test_missing_accelerator(complain: Complain) -> None:
    assert "gpu" in complain(*INPAINT, "--trainer.accelerator", "gpu")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_damaged_checkpoint(content: bytes, stage1: Path, complain: Complain) -> None:
    checkpoint = Path("run/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(stage1 / runs.CONFIG, Path("run") / runs.CONFIG)
    checkpoint.write_bytes(content)
    for argv in (*READERS, [*DISTILL, STAGE1, str(checkpoint)]):
        line = complain(*argv)
        assert str(checkpoint) in line and "damaged" in line


@pytest.mark.parametrize("argv", READERS, ids=["test", "fit"])
def test_single_flipped_bit_in_a_weight(argv: list[str], stage1: Path, complain: Complain) -> None:
    """torch itself does not notice it."""
    shutil.copytree(stage1, "run")
    path = Path("run/checkpoints/last.ckpt")
    Path("run/checkpoints/previous.ckpt").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    line = complain(*argv)
    assert all(part in line for part in ("run/checkpoints/last.ckpt", "checksum", "damaged"))


def test_unreadable_image_in_a_loader_worker(complain: Complain) -> None:
    for path in draw_folder(Path("faces")).glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:5000])
    quick = ["--config", "data/folder", "--data.num_workers", "2", *DEV_RUN]
    line = complain(*INPAINT, *quick, *SMALL, *TINY_STAGE1)
    assert ".png" in line and line.startswith(("deocc: person", "deocc: faces/person"))


def test_pickle_in_a_checkpoint_is_not_executed(complain: Complain, tmp_path: Path) -> None:
    torch.save({"state_dict": _Touch(tmp_path / "executed")}, "evil.ckpt")
    assert "evil.ckpt" in complain(*DISTILL, STAGE1, "evil.ckpt")
    assert not (tmp_path / "executed").exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)
