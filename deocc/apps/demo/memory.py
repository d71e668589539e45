"""Photos that were given to the page: off the disk with their first use, and out of memory ten minutes after the last."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

KEPT: Final = 600.0
"""Seconds that a photo is there for another mask or another comparison. OURS."""

_MOST: Final = 20
"""Photos in memory at once, of ten megabytes each at most; then the one that was used the longest ago goes. OURS."""


class PhotoMemory:
    """The bytes of uploaded files.

    Args:
        uploads: the folder that uploads lie in; no other file is read, whatever a client names.
        seconds: how long a photo stays.
    """

    def __init__(self, uploads: Path, seconds: float = KEPT) -> None:
        self._uploads, self._seconds = uploads.resolve(), seconds
        self._photos: dict[Path, tuple[float, bytes]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __len__(self) -> int:
        """How many photos are in memory."""
        return len(self._photos)

    def take(self, named: str) -> bytes:
        """The content of the file that a client names; the file is gone then, and its folder with it.

        Raises:
            FileNotFoundError: no upload of this name is on the disk or in memory.
        """
        path = (self._uploads / named).resolve()
        if not named or not path.is_relative_to(self._uploads):
            raise FileNotFoundError(named)
        with self._lock:
            data = path.read_bytes() if path.is_file() else self._photos[path][1] if path in self._photos else None
            if data is None:
                raise FileNotFoundError(named)
            self._photos.pop(path, None)
            self._photos[path] = time.monotonic(), data  # the latest one comes last
            if len(self._photos) > _MOST:
                del self._photos[next(iter(self._photos))]
            self._forget_later()
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty where another photo lies in it
            if path.parent != self._uploads:
                path.parent.rmdir()
        return data

    def _forget_later(self) -> None:
        if self._timer is None and self._photos:
            self._timer = threading.Timer(self._seconds / 10, self._forget)
            self._timer.daemon = True
            self._timer.start()

    def _forget(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._photos = {path: (used, data) for path, (used, data) in self._photos.items() if now - used < self._seconds}
            self._timer = None
            self._forget_later()
