"""What the command line costs before it does anything."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from bench.measuring import Row

HELP = [str(Path(sys.executable).with_name("deocc")), "--help"]
INTERPRETER = [sys.executable, "-c", "pass"]


def help_text(pairs: int = 7) -> Row:
    """CPU seconds of `deocc --help` beyond those of the bare interpreter, which is the reference; median over pairs after a warm-up."""
    taken = [(cpu_seconds(HELP), cpu_seconds(INTERPRETER)) for _ in range(pairs + 1)][1:]
    return {
        "what": "deocc --help, CPU time beyond the interpreter",
        "unit": "s",
        "ours": statistics.median(ours - interpreter for ours, interpreter in taken),
        "reference": statistics.median(interpreter for _, interpreter in taken),
    }


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
