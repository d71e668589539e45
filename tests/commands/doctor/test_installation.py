"""`deocc doctor` on the installation: findings are right and independent, and the exit code says if any is wrong."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from deocc.commands import doctor, doctor_installation
from deocc.commands.doctor_installation import CHECKS, Check, Context, Finding, run_check

LIGHT = "import sys, deocc.commands.doctor; assert not {'torch', 'numpy', 'cv2'} & set(sys.modules)"


def find(checks: Iterable[Check]) -> list[Finding]:
    return [finding for check in checks for finding in run_check(check, Context())]


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize("error", [ValueError("a\nb"), SystemExit("a b"), KeyError("a b"), ImportError("a b")])
def test_run_check_reports_exception(error: BaseException) -> None:
    def function(context: Context) -> Iterator[Finding]:
        yield Finding("OK", "first")
        raise error

    first, second = find([Check("thing", function, "do this")])
    assert first.text == "first"
    assert (second.level, second.remedy) == ("wrong", "do this")
    assert "thing: " in second.text and "a b" in second.text and "\n" not in second.text


def test_run_check_passes_on_ctrl_c() -> None:
    def function(context: Context) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        find([Check("thing", function, "")])


def test_import_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sound_one.py").write_text("print('noise', flush=True)")
    (tmp_path / "failing_one.py").write_text("raise ImportError('no\\nlibGL')")
    (tmp_path / "leaving_one.py").write_text("import sys\nsys.exit(3)")
    failures = doctor_installation.import_failures(["sound_one", "failing_one", "leaving_one", "absent_one", "json"])
    assert set(failures) == {"failing_one", "leaving_one", "absent_one"}
    assert failures["failing_one"] == "ImportError: no libGL"
    assert failures["leaving_one"] == "SystemExit: 3"
    assert capfd.readouterr().out == ""


def test_required_modules_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_missing(names: Iterable[str]) -> dict[str, str]:
        return {name: "missing" for name in names if find_spec(name) is None}

    monkeypatch.setattr(doctor_installation, "import_failures", find_missing)
    assert levels(find(CHECKS[2:3])) == ["OK"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace the installed packages by these versions; deocc needs `solid`, its extra needs `extraone`."""
    versions = {"deocc": "1.0", "solid": "2.1", "extraone": "3.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    about = Message()
    about["Requires-Python"] = ">=3.11"
    for extra in ("photos", "dev"):
        about["Provides-Extra"] = extra
    lines = [
        "solid[fast]<3,>=2",
        'extraone>=3; extra == "photos"',
        'deocc[photos]; extra == "dev"',
        'tool; extra == "dev"',
        'old; python_version < "3"',
    ]
    monkeypatch.setattr(doctor_installation, "version", version)
    monkeypatch.setattr(doctor_installation, "metadata", lambda name: about)
    monkeypatch.setattr(doctor_installation, "requires", lambda name: lines)
    return versions


def test_requirements_by_extra(installed: dict[str, str]) -> None:
    names = {extra: [each.name for each in group] for extra, group in doctor_installation.requirements().items()}
    assert names == {"": ["solid"], "photos": ["extraone"]}


@pytest.mark.parametrize(
    ("changes", "expected", "text"),
    [
        ({}, ["OK", "OK", "OK"], "solid 2.1"),
        ({"solid": "3.0"}, ["OK", "wrong", "OK"], "solid 3.0 is installed, deocc needs <3,>=2"),
        ({"solid": ""}, ["OK", "wrong", "OK"], "not installed: solid"),
        ({"extraone": ""}, ["OK", "OK", "warning"], 'pip install "deocc[photos]"'),
    ],
)
def test_check_packages(installed: dict[str, str], changes: dict[str, str], expected: list[str], text: str) -> None:
    for name, version in changes.items():
        installed[name] = version
        if not version:
            del installed[name]
    findings = find(CHECKS[:2])
    assert levels(findings) == expected and text in " ".join(map(str, findings))


def test_check_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError(28, "No space left on device")

    folders = CHECKS[3:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "new/cache"))
    assert levels(find(folders)) == ["OK", "OK"] and not any(tmp_path.iterdir())
    (tmp_path / "new").touch()
    assert levels(find(folders)) == ["OK", "wrong"]
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        first, _ = find(folders)
    assert first.level == "wrong" and "No space left" in first.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0.5e9))
    assert levels(find(folders)) == ["warning", "wrong"]


@pytest.mark.parametrize(
    ("failures", "missing", "count"),
    [
        ({"torch": "OSError: libtorch.so: cannot open", "torchvision": "ImportError: libGL"}, [], 2),
        ({}, ["torchvision"], 1),
    ],
    ids=["broken", "missing"],
)
def test_main_unusable(
    failures: dict[str, str],
    missing: list[str],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_installation, "import_failures", lambda names: failures)
    installed_version = doctor_installation._version
    monkeypatch.setattr(
        doctor_installation, "_version", lambda name: None if name in missing else installed_version(name)
    )
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    for name, reason in failures.items():
        assert f"wrong    {name} cannot be imported: {reason}" in printed
        assert f"pip install --force-reinstall --no-deps {name}" in printed
    assert printed.count("wrong    ") == count and printed.rstrip().endswith(f"wrong {count}")
    assert "all other checks are left out" in printed and "teacher" not in printed


def test_main_unknown_argument() -> None:
    with pytest.raises(ValueError, match="unrecognized arguments: --chekpoint"):
        doctor.main(["--chekpoint", "x"])


def test_import_is_light() -> None:
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0
