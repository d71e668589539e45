"""Atomic writes, checksums and locks."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deocc.files import cache_folder, checksum, hold_lock, package_file, replace_file, walk_files, write_file


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", [b"new\r\n", "caf\u00e9 \udce9\n"])
def test_write_file_replaces_everything(tmp_path: Path, content: bytes | str, durable: bool) -> None:
    path = tmp_path / "made" / "file.txt"
    for text in ("a much longer earlier content", content):
        write_file(path, text, durable=durable)
    expected = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    assert path.read_bytes() == expected
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o444  # a temporary file's 0600 would lock others out


def test_replace_file_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(ZeroDivisionError), replace_file(path) as draft:
        draft.write_text("half")
        assert draft.parent == tmp_path
        assert path.read_text() == "earlier"
        raise ZeroDivisionError
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_replace_file_overwrites_a_fixed_draft(tmp_path: Path) -> None:
    draft = tmp_path / ".file.part"
    draft.write_text("left by a killed process, longer than the new content")
    with replace_file(tmp_path / "file", draft=draft) as given:
        assert given == draft
        given.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert not draft.exists()


def test_replace_file_reports_the_system_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_file(tmp_path / "file" / "below", "text")


def test_checksum_is_sha256_of_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"a" + "\u00fc".encode() + b"\xe9" + b"x" * 3_000_000).hexdigest()
    assert checksum(b"a", "\u00fc\udce9", path) == expected


_HOLDER = """
import sys
from pathlib import Path
from deocc.files import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_hold_lock_excludes_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match="held by another process"), hold_lock(path, wait=False):
            pytest.fail("two processes hold the lock")
        waited = []

        def on_wait() -> None:
            waited.append(True)
            holder.kill()

        with hold_lock(path, on_wait=on_wait):
            assert waited == [True]
    with hold_lock(path, wait=False):
        pass


def test_hold_lock_passes_the_error_of_the_body(tmp_path: Path) -> None:
    for error in (OSError("body"), TimeoutError("body")):
        with pytest.raises(type(error), match=r"^body$"), hold_lock(tmp_path / "a.lock", required=False):
            raise error


def test_hold_lock_without_a_writable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.lock"
    with pytest.raises(OSError, match="cannot lock"), hold_lock(path):
        pytest.fail("no lock can be there")
    with hold_lock(path, required=False):
        pass


def test_walk_files_reports_bad_links(tmp_path: Path) -> None:
    for name in ("a.png", "z.png"):
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    errors: list[OSError] = []
    assert [name for name, _ in walk_files(tmp_path, errors.append)] == ["a.png", "z.png"]
    assert [error.filename for error in errors] == [str(tmp_path / "loop")]
    assert [name for name, _ in walk_files(tmp_path)] == ["a.png", "z.png"]


def test_walk_files_skips_results(tmp_path: Path) -> None:
    for name in ("a.png", "out/b.png", "deep/table.csv", "table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = walk_files(tmp_path, outside=[tmp_path / "out", tmp_path / "deep/../deep/table.csv"])
    assert [name for name, _ in found] == ["a.png", "table.csv"]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("DEOCC_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "deocc"


def test_package_file_without_package_or_file() -> None:
    assert package_file("pytest", "py.typed", "pip install pytest").is_file()
    with pytest.raises(ImportError, match=r"no-such-package, which ships a\.dat, is not installed: pip install it"):
        package_file("no_such_package", "models/a.dat", "pip install it")
    with pytest.raises(FileNotFoundError, match=r"no a\.dat in .*pytest.models: reinstall pytest"):
        package_file("pytest", "models/a.dat", "pip install it")
