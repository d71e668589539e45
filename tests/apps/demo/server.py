"""The page's server in a process of its own, as a person would run it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

COMMAND = "import sys\nfrom deocc.commands.demo import main\nsys.exit(main(sys.argv[1:]))"
KEPT_A_SECOND = f"from deocc.commands.demo import page\npage._SWEEP = page._KEPT = 1\n{COMMAND}"
"""The same, but photos are deleted after a second."""


class Server(NamedTuple):
    """A server that runs."""

    process: "subprocess.Popen[str]"
    address: str
    temporary: Path
    """Where it may put temporary files."""
    said: list[str]
    """Its lines so far."""

    def end(self, by: signal.Signals) -> int:
        """Send a signal, SIGINT being Ctrl-C; the exit code."""
        self.process.send_signal(by)
        return self.process.wait(60)

    def files(self) -> list[Path]:
        """All that it has on disk."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@contextmanager
def serving(model: Path, temporary: Path, code: str = COMMAND) -> Iterator[Server]:
    """`deocc demo` for a model, at a port of its own."""
    words = [sys.executable, "-c", code, "--checkpoint", str(model), "--device", "cpu", "--port", "0"]
    settings = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise RuntimeError(f"the server did not start: {''.join(said)}")
        reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)  # or the pipe would fill
        reader.start()
        yield Server(process, said[-1].split()[2], temporary, said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
