"""The folders that deocc writes to: may it, and is there room?"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from deocc.apps.doctor.finding import Check, Finding
from deocc.runs import ROOT, cache_folder

_LITTLE: Final = 1.0
"""GB below which a warning is given: both stages and a test on the embedded faces write 110 MB (`du -s runs/ablation/*-fold0-seed0`), and
checkpoints of larger networks are larger. OURS."""


def checks() -> list[Check]:
    """The folder of runs and that of caches."""
    cache = cache_folder()
    return [
        Check("folder of runs", partial(_look_at, ROOT, "folder of runs", "run deocc in a folder of yours, or free space there")),
        Check("cache folder", partial(_look_at, cache, "cache folder", "export DEOCC_CACHE=FOLDER, one with room that you may write to")),
    ]


def _look_at(folder: Path, title: str, remedy: str) -> Iterator[Finding]:
    """A file is written, where the folder is or would be made, and removed: permissions alone do not tell of a full or read-only disk."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    title = f"{title} {folder}"
    if not place.is_dir():
        yield Finding("wrong", f"{title}: {place} is a file", remedy)
        return
    free = shutil.disk_usage(place).free / 1e9
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**16))
    except OSError as error:
        yield Finding("wrong", f"{title}: nothing can be written in {place} ({error.strerror}; {free:.1f} GB free)", remedy)
        return
    said = f"{title}: can be written to, {free:.1f} GB free"
    yield Finding("OK", said) if free >= _LITTLE else Finding("warning", f"{said}, which is little", remedy)
