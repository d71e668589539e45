"""The command line: dispatches `deocc COMMAND` to one file per command, without importing torch for help and errors."""

import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from deocc import __version__
from deocc.commands import arguments
from deocc.messages import say, show_logs, telling_errors

COMMANDS = {
    "fit": "train a stage: deocc fit --config inpaint",
    "validate": "evaluate a run on the validation people: deocc validate [--checkpoint RUN]",
    "test": "evaluate a run on the test people, write results.json and report.html: deocc test [--checkpoint RUN]",
    "predict": "complete and embed photos: deocc predict PHOTOS... --out DIR; without, validation faces of a run",
    "ablate": "train and compare the variants of a plan: deocc ablate --config ablation/paper",
    "mask": "put masks on photos: deocc mask PHOTOS... --kind surgical --out DIR",
    "verify": "compare two photos: deocc verify A B",
    "identify": "find people of a gallery in photos: deocc identify GALLERY PHOTOS...",
    "export": "write the trained system to one file: deocc export --to onnx --out FILE",
    "demo": "try the system on a local web page: deocc demo",
    "doctor": "check the installation and suggest fixes: deocc doctor [--checkpoint RUN] [--data FOLDER]",
}
_HELP = """deocc: face recognition through masks

usage: deocc COMMAND [--config FILE ...] [--run FOLDER] [--KEY VALUE ...]

{commands}

`deocc COMMAND --help` lists every key. A configuration is a file, or the name of one that comes with deocc, such as
inpaint, distill or trainer/gpu. --config may be given several times; later files and --KEY VALUE win.
If an error occurs, DEOCC_TRACEBACK=1 shows where."""
_PHOTO_OPTIONS = frozenset(  # options of `deocc predict` that only its form with photos has
    ["--out", "--parquet", "--json", "--all", "--face", "--aligned", "--detector", "--detector-weights", "--device"]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `deocc`.

    Raises:
        SystemExit: code 2 after one line about bad input, with --json also an object on the output, or about an output
            that cannot be written, such as a file on a full disk; 130 after Ctrl-C; 141 without a word if the reader of
            the output, such as `head`, has ended. With DEOCC_TRACEBACK=1 the original error is raised instead of 2.
    """
    home = os.path.expanduser("~")  # noqa: PTH111
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")  # names of files may have characters it cannot encode
        try:  # shells expand `~` in `~/x` only, not in `--option=~/x`, and not if it is quoted
            given = sys.argv[1:] if argv is None else argv
            _main([re.sub(r"^(--[\w.-]+=)?~(?=/|$)", lambda match: (match[1] or "") + home, text) for text in given])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # of writing to a stream: all others were reported
        if os.environ.get("DEOCC_TRACEBACK"):
            raise
        _discard(sys.stdout)
        reported = isinstance(error.__context__, SystemExit) and error.__context__.code == 2
        try:
            if not reported:
                say(f"cannot write the output ({error.strerror or error}): make room or send it elsewhere")
        except OSError:
            _discard(sys.stderr)
        sys.exit(2)


def _discard(stream: TextIO) -> None:
    """Send what is in the buffer of a stream, and all that follows, nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(argv: list[str]) -> None:
    if not argv or argv[0] in {"-h", "--help"}:
        print(_HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())))
        return
    if argv[0] == "--version":
        print(f"deocc {__version__}")
        return
    if argv[0] not in COMMANDS:
        say(f"unknown command {argv[0]!r}: choose one of {', '.join(COMMANDS)}")
        sys.exit(2)
    show_logs()
    try:
        with telling_errors("--json" in argv):
            code = _run(argv)
    except KeyboardInterrupt:
        sys.exit(130)
    if code:
        sys.exit(code)


def _run(argv: list[str]) -> int:
    """Import a command and run it; return its exit code."""
    command = argv[0]
    # With a photo or folder as its first argument, or with an option that needs photos, `predict` predicts photos, and
    # its help is of this form; otherwise it runs the prediction loop on the validation faces of a run.
    photos = command == "predict" and len(argv) > 1 and (argv[1] in {"-h", "--help"} or not argv[1].startswith("-"))
    photos |= command == "predict" and any(text.split("=")[0] in _PHOTO_OPTIONS for text in argv)
    if command in arguments.PARSERS and (command != "predict" or photos):
        arguments.PARSERS[command]().parse_args(argv[1:])  # help and wrong arguments need no imports
    elif {"-h", "--help"} & set(argv):
        print(arguments.TRAINING_HELP[command] + ("" if command == "ablate" else arguments.KEYS_HELP), end="")
        return 0
    if command in {"fit", "validate", "test", "predict"} and not photos:
        return int(importlib.import_module("deocc.training").run(argv))
    return int(importlib.import_module(f"deocc.commands.{command}").main(argv[1:]))
