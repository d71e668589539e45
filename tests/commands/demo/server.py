"""`deocc demo` in a separate process."""

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
SHORT_LIVED = f"from deocc.commands import demo\ndemo._SWEEP_SECONDS = demo._KEEP_SECONDS = 1\n{COMMAND}"
"""The same command, but photos are deleted after a second."""


class Server(NamedTuple):
    """A running server, its temporary folder and its output lines."""

    process: "subprocess.Popen[str]"
    address: str
    temporary: Path
    output: list[str]

    def end(self, by: signal.Signals) -> int:
        """Send a signal (SIGINT is Ctrl-C) and return the exit code."""
        self.process.send_signal(by)
        return self.process.wait(60)

    def files(self) -> list[Path]:
        """Return all files that the server has on disk."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@contextmanager
def serving(model: Path, temporary: Path, code: str = COMMAND) -> Iterator[Server]:
    """Serve a model at a free port."""
    argv = [sys.executable, "-c", code, "--checkpoint", str(model), "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output: list[str] = []
    try:
        for line in process.stdout:
            output.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise RuntimeError(f"the server did not start: {''.join(output)}")
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)  # or the pipe would fill
        reader.start()
        yield Server(process, output[-1].split()[2], temporary, output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
