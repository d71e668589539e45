"""The folder that a command's results go to."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deocc.runs import cache_folder


def check_out(out: Path, photos: Sequence[Path]) -> None:
    """Raise ValueError where `out` is a file, or the very folder that the photos lie in."""
    if any(photo.resolve() == out.resolve() for photo in photos):
        raise ValueError(f"--out {out} is the folder of the photos: choose a folder of its own, which may lie in it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a folder")


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep other commands of this machine out of a folder meanwhile: two would replace each other's tables by their own.

    The lock lies in the cache folder, so that nothing of it is among the results; where that cannot be written to, there is none.

    Raises:
        ValueError: another command is at work there.
    """
    lock = FileLock(cache_folder() / "locks" / f"out-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another deocc is at work in {out}: wait for it, or choose another --out") from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
