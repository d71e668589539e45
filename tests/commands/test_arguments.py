"""Parsers and help: quick, without torch, and in agreement with the registries they copy."""

import subprocess
import sys
from pathlib import Path

import pytest

from deocc.cli import COMMANDS, main
from deocc.commands import arguments
from deocc.detection import list_detectors
from deocc.inference import faces
from deocc.inference.export_formats import SUFFIXES
from deocc.masking import list_kinds

HEAVY = ("torch", "pytorch_lightning", "torchmetrics", "torchvision", "albumentations", "scipy", "matplotlib")
VERIFY_NEEDS_NOT = (*HEAVY[1:], "rich", "timm", "jinja2", "sympy")


def imported_by(code: str, names: tuple[str, ...]) -> set[str]:
    """Return which of the modules a fresh interpreter has imported after running `code`."""
    script = f"import sys\n{code}\nprint('IMPORTED', *({set(names)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_copies_equal_the_registries() -> None:
    assert list_kinds()[: len(arguments.KINDS)] == arguments.KINDS  # tests may have registered more
    assert list_detectors() == arguments.DETECTORS
    assert tuple(faces.ALIGNMENTS) == arguments.ALIGNMENTS
    assert faces.DEFAULT_DETECTOR == arguments.DEFAULT_DETECTOR
    assert SUFFIXES == arguments.EXPORT_SUFFIXES


@pytest.mark.parametrize("command", [*COMMANDS, "predict photos"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        main([*command.split(), "--help"])
    except SystemExit as ended:
        assert not ended.code
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: deocc {command.split()[0]}")
    assert len(printed.splitlines()) < 70
    assert ("--out" in printed) == (command in {"mask", "predict", "predict photos", "identify", "export"})


def test_help_and_wrong_arguments_import_nothing_heavy() -> None:
    code = "from deocc.cli import main\n" + "".join(
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        for argv in [*([name, "--help"] for name in COMMANDS), ["verify", "a.jpg"], ["mask", "x", "--kindd", "y"]]
    )
    assert imported_by(code, HEAVY) == set()


def test_verify_imports_little() -> None:
    assert imported_by("import deocc.commands.verify", VERIFY_NEEDS_NOT) == set()


def test_library_imports_stay_lazy(tmp_path: Path) -> None:
    assert imported_by("import deocc", HEAVY) == set()
    assert imported_by("import deocc.data, deocc.detection, deocc.evaluation", VERIFY_NEEDS_NOT) == set()
