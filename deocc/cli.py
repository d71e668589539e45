"""The one command, `deocc`: light help, clear errors, and the training commands by LightningCLI behind it."""

import importlib
import os
import sys
from collections.abc import Sequence

from deocc import __version__

_TRAINING = {
    "fit": "train a stage: deocc fit --config configs/inpaint.yaml",
    "validate": "evaluate a run on the validation people: deocc validate [--checkpoint RUN]",
    "test": "evaluate a run on the test people, write results.json and report.html: deocc test [--checkpoint RUN]",
    "predict": "complete and embed photos: deocc predict PHOTOS... --out DIR; without photos, masked validation faces",
}
_APPS = {
    "ablate": "train and compare the variants of a plan: deocc ablate --config configs/ablation/paper.yaml",
    "mask": "put masks on photos: deocc mask PHOTOS... --kind surgical --out DIR",
    "verify": "whether two photos show one person: deocc verify A B",
    "identify": "who of a gallery is in photos: deocc identify GALLERY PHOTOS...",
    "export": "the trained system as one file: deocc export --to onnx --out FILE",
    "demo": "a local web page to try it on: deocc demo",
    "doctor": "what is installed, what is wrong and what mends it: deocc doctor [--checkpoint RUN] [--data FOLDER]",
}
_COMMANDS = _TRAINING | _APPS

_OF_PHOTOS = {"--out", "--parquet", "--all", "--aligned", "--detector", "--detector-weights"}
_TRACEBACK = "DEOCC_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `deocc` with the given arguments (default: the command line's).

    Raises:
        SystemExit: code 2 after one line on bad input; 130 after Ctrl-C. With DEOCC_TRACEBACK=1 the original error is raised instead.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help"}:
        print(_help())
    elif words[0] == "--version":
        print(f"deocc {__version__}")
    elif words[0] not in _COMMANDS:
        _fail(f"unknown command {words[0]!r}: choose one of {', '.join(_COMMANDS)}")
    else:
        _run(words)


def _run(words: list[str]) -> None:
    try:
        if words[0] in _APPS or _names_photos(words):
            code = importlib.import_module(f"deocc.commands.{words[0]}").main(words[1:])
        else:
            code = importlib.import_module("deocc.training_cli").run(words)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get(_TRACEBACK):
            raise
        _fail(_explained(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    if code:
        sys.exit(code)


def _names_photos(words: Sequence[str]) -> bool:
    """Whether this is the `predict` of photos: that of validation faces takes options only, and other ones."""
    given = {word.partition("=")[0] for word in words[1:]}
    return (
        words[0] == "predict" and len(words) > 1 and (not words[1].startswith("-") or not given.isdisjoint(_OF_PHOTOS))
    )


def _explained(message: str) -> str:
    """The heart of a message; those of Lightning and jsonargparse need it, and where they were not imported none is of them."""
    training_cli = sys.modules.get("deocc.training_cli")
    return message if training_cli is None else str(training_cli.explain(message))


def _fail(message: str) -> None:
    line = " ".join(message.split())
    print(f"deocc: {line}", file=sys.stderr)
    sys.exit(2)


def _help() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in _COMMANDS.items())
    return (
        "deocc: recognise faces through masks\n\n"
        f"usage: deocc COMMAND [--config FILE ...] [--run FOLDER] [--KEY VALUE ...]\n\n{commands}\n\n"
        "`deocc COMMAND --help` lists every key. --config may be given several times; later files and --KEY VALUE win.\n"
        f"On an error {_TRACEBACK}=1 shows where it arose."
    )
