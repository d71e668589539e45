"""Which command a command line runs."""

import os
import signal
import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest

from deocc import __version__, cli
from deocc.commands.arguments import PARSERS


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The calls of stand-ins for the photo command and the training commands, and their arguments."""
    calls: list[tuple[str, list[str]]] = []

    def record(name: str, argv: list[str]) -> int:
        calls.append((name, argv))
        return 0

    for module, function in (("deocc.commands.predict", "main"), ("deocc.training", "run")):
        stand_in = ModuleType(module)
        setattr(stand_in, function, partial(record, module))
        monkeypatch.setitem(sys.modules, module, stand_in)
    return calls


@pytest.mark.parametrize(
    "argv",
    ["photos --out a", "a.jpg --out b --all", "--out a photos", "--checkpoint x --out=a photos", "--json x --out a"],
)
def test_predict_with_photos_first(argv: str, called: list[tuple[str, list[str]]]) -> None:
    cli.main(["predict", *argv.split()])
    assert called == [("deocc.commands.predict", argv.split())]


@pytest.mark.parametrize("argv", ["", "--checkpoint runs/distill", "--config a.yaml --data.num_workers 1"])
def test_predict_without_photos(argv: str, called: list[tuple[str, list[str]]]) -> None:
    cli.main(["predict", *argv.split()])
    assert called == [("deocc.training", ["predict", *argv.split()])]


def test_photo_options_are_those_of_the_parser() -> None:
    options = {option for action in PARSERS["predict"]()._actions for option in action.option_strings}
    assert options - {"-h", "--help", "--checkpoint"} == cli._PHOTO_OPTIONS


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        cli.main(argv)
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
    cli.main(["--version"])
    assert capsys.readouterr().out == f"deocc {__version__}\n"


@pytest.mark.parametrize("words", ["--help", "mask --help", "fit --help", "doctor", "verify no.jpg no.jpg --json"])
def test_reader_ends_early(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from deocc import cli; cli.main(sys.argv[1:])"
    argv = [sys.executable, "-c", program, *words.split()]
    ended = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    expected = 0 if words == "mask --help" else 128 + signal.SIGPIPE  # argparse ignores it
    assert ended.returncode == expected
    assert "Traceback" not in ended.stderr and "pipe" not in ended.stderr


def run_cli(body: str, redirections: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `deocc verify` with another body in a shell with redirections."""
    program = f"import sys; from deocc import cli, messages; cli._run = lambda argv: {body}; cli.main(sys.argv[1:])"
    command = ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-c", program, "verify", *argv]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("body", ["print('different') or 1", "print('x' * 100_000)", "open('nowhere')"])
def test_full_disk_is_reported(body: str) -> None:
    ended = run_cli(body, "> /dev/full", "--json")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("deocc: ") and "No s" in line
    assert run_cli(body, "> /dev/full 2>&1").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_earlier_output_on_a_full_disk_is_reported() -> None:
    """The buffer of a stream that `main` changes may contain earlier output of the program."""
    program = "print('earlier'); from deocc import cli; cli.main(['--help'])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PYTHONIOENCODING"] = "utf-8:strict"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        argv = [sys.executable, "-c", program]
        ended = subprocess.run(argv, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("deocc: cannot write the output")


@pytest.mark.parametrize(
    ("redirections", "printed"), [(">&-", ("", "deocc: note\n")), ("2>&-", ("answer\n", "")), (">&- 2>&-", ("", ""))]
)
def test_streams_may_be_closed(redirections: str, printed: tuple[str, str]) -> None:
    ended = run_cli("print('answer') or messages.say('note') or 1", redirections)
    assert (ended.returncode, (ended.stdout, ended.stderr)) == (1, printed)


def test_other_broken_pipes_are_reported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["mask", "photos", "--out", "a"])
    assert ended.value.code == 2 and "Broken pipe" in capfd.readouterr().err


@pytest.mark.parametrize("traceback", [False, True])
def test_errors_are_one_line(
    traceback: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise ValueError("first\nsecond")

    monkeypatch.setitem(sys.modules, "deocc.commands.mask", ModuleType("mask"))
    monkeypatch.setattr(sys.modules["deocc.commands.mask"], "main", fail, raising=False)
    monkeypatch.setenv("DEOCC_TRACEBACK", "1" if traceback else "")
    with pytest.raises(ValueError if traceback else SystemExit):
        cli.main(["mask", "photos", "--out", "a"])
    assert capsys.readouterr().err == ("" if traceback else "deocc: first second\n")
