"""LMDB files as one process opens them: to read a complete one, or to go on with an unfinished one."""

import os
from pathlib import Path
from typing import Final

import lmdb

_READERS: Final[dict[Path, tuple[int, lmdb.Environment]]] = {}  # LMDB allows a process one opening of a file


def reader(path: Path) -> lmdb.Environment:
    """The file, opened once a process: a forked worker must not use its parent's.

    No lock is taken, for nobody writes to a complete file, and locks do not work on every network drive.

    Raises:
        lmdb.Error: it is not there, or no LMDB file.
    """
    process, environment = _READERS.get(path, (0, None))
    if environment is not None and process != os.getpid():
        forget(path)
    if path not in _READERS:
        # Values are asked for in random order: to read ahead would fetch what nobody asks for.
        _READERS[path] = os.getpid(), lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    return _READERS[path][1]


def forget(path: Path) -> None:
    """Close what `reader` opened."""
    if path in _READERS:
        _READERS.pop(path)[1].close()


def open_to_append(path: Path, most_bytes: int) -> lmdb.Environment:
    """The file as an interruption left it, or a new one where there is none or it is damaged; its only writer is the caller.

    Args:
        path: the file.
        most_bytes: what it may grow to.

    Raises:
        lmdb.Error: the file cannot be written.
    """
    try:
        environment = lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)
        if is_whole(environment, path):
            return environment
        environment.close()
    except lmdb.InvalidError:
        pass
    path.unlink()
    return lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)


def count(environment: lmdb.Environment) -> int:
    """The number of values."""
    return int(environment.stat()["entries"])


def is_whole(environment: lmdb.Environment, path: Path) -> bool:
    """Whether the file reaches to its last page: to read beyond the end of one that was cut short would kill the process."""
    return path.stat().st_size >= (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
