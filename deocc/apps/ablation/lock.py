"""One `deocc ablate` at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder, which is made where it is not there.

    The lock lies on the open file: children that inherit the descriptor hold it too, so those that outlive a killed parent still keep
    others out.

    Yields:
        The descriptor for children to keep open.

    Raises:
        RuntimeError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = f"process {file.read().strip() or 'unknown'}, or a run that it left behind"
            raise RuntimeError(
                f"{folder} is in use by another `deocc ablate` ({holder}): wait for it, end it, or give another --run"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
