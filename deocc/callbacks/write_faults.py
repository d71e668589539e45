"""A training goes on where one of its logs cannot be written: the disk is full, or the folder has become read-only."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


class WriteFaults:
    """Takes the errors of writes that must not end a training.

    Of each path a line on stderr tells the first error, and then the first success. Nothing is said in between.
    """

    def __init__(self) -> None:
        self._failing: set[Path] = set()
        self._entered: set[Path] = set()

    @contextlib.contextmanager
    def spared(self, path: Path, meanwhile: str) -> Iterator[None]:
        """Run a write to `path`; an OSError ends the block, not the training. Of blocks within each other the outer one counts.

        Args:
            path: what the line names: the file, or the folder of files that are each written once.
            meanwhile: what becomes of the content, such as "its rows are kept and written as soon as that works".
        """
        if path in self._entered:
            yield
            return
        self._entered.add(path)
        try:
            yield
        except OSError as error:
            if path not in self._failing:
                self._failing.add(path)
                reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
                advice = "make room or make it writable"
                print(f"deocc: cannot write {path} ({reason}): training goes on; {advice}; {meanwhile}", file=sys.stderr, flush=True)
        else:
            if path in self._failing:
                self._failing.remove(path)
                print(f"deocc: {path} can be written again", file=sys.stderr, flush=True)
        finally:
            self._entered.remove(path)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file there as a whole, so that neither a kill nor a full disk leaves half of one; its folder is made.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def add_whole(path: Path, content: bytes) -> None:
    """Add to a file's end in one write, all of the content or nothing; the file is made where there is none.

    Raises:
        OSError: it cannot be written; a part that the disk took is cut off again.
    """
    with path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(content)
        try:
            while rest:  # a disk that fills up takes a part; the next write says why
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
