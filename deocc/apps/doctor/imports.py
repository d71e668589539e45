"""Which modules can be imported, tried in a process of their own: a broken one may end the process that imports it."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

_MARK: Final = "deocc-import:"
_PROGRAM: Final = f"""
import importlib, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import deocc
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        said = ""
    except (Exception, SystemExit) as error:
        said = " ".join(f"{{type(error).__name__}}: {{error}}".split())
    print("{_MARK}", name, said, file=answers, flush=True)
"""
"""Imports deocc first, as the commands do: its guards are part of what is tried. What packages print goes to the error stream."""


def import_failures(names: Sequence[str]) -> dict[str, str]:
    """Why modules cannot be imported, by name; those that can are left out.

    Raises:
        RuntimeError: deocc itself cannot be imported in a new process.
    """
    failures: dict[str, str] = {}
    pending = list(names)
    while pending:
        answers, code, errors = _try(pending)
        failures |= {name: reason for name, reason in answers.items() if reason}
        pending = [name for name in pending if name not in answers]
        if pending and not answers and code > 0 and len(pending) == len(names):
            raise RuntimeError(f"a new Python process cannot import deocc ({errors.splitlines()[-1] if errors else f'exit code {code}'})")
        if pending:
            failures[pending.pop(0)] = f"it ends the process ({_ending(code)})"
    return failures


def _try(names: Sequence[str]) -> tuple[dict[str, str], int, str]:
    """What each module said before the process ended ("" where it was imported), its exit code and its error stream."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, *names]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    answers = {}
    for line in ended.stdout.splitlines():
        if line.startswith(_MARK):
            name, _, reason = line.removeprefix(_MARK).strip().partition(" ")
            answers[name] = reason
    return answers, ended.returncode, ended.stderr.strip()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
