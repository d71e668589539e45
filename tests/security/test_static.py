"""Bandit finds nothing in the package and the benches, and finds what it should where there is something."""

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of bandit's own loader of plugins
    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager


def _findings(*targets: Path) -> list[str]:
    """FILE:LINE, number and text of each finding, with the settings of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"].get("bandit", {})
    manager = BanditManager(BanditConfig(), "file", profile={"exclude": settings.get("skips", [])})
    manager.discover_files([str(target) for target in targets], recursive=True)
    manager.run_tests()
    assert manager.skipped == [] and manager.files_list
    return [f"{issue.fname}:{issue.lineno} {issue.test_id} {issue.text}" for issue in manager.get_issue_list()]


def test_bandit_passes_readers_of_untrusted_files() -> None:
    targets = [
        ROOT / "deocc" / name
        for name in (
            "commands/demo.py",
            "commands/demo_analysis.py",
            "inference",
            "data/images.py",
            "data/insightface.py",
            "data/pairs.py",
            "evaluation/verification.py",
            "networks/deoccluder.py",
            "networks/weights.py",
        )
    ]
    assert [path for path in targets if not path.exists()] == []  # bandit ignores a path that was moved
    assert _findings(*targets) == []


@pytest.mark.slow
def test_bandit_passes_package_and_benches() -> None:
    assert _findings(ROOT / "deocc", ROOT / "bench") == []


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("import subprocess; subprocess.run(word, shell=True)", "B602"),
        ("import torch; torch.load(path)", "B614"),
        ("import yaml; yaml.load(text)", "B506"),
        ("import pickle; pickle.load(file)", "B301"),
        ("import tempfile; tempfile.mktemp()", "B306"),
        ("eval(word)", "B307"),
    ],
)
def test_bandit_would_find(tmp_path: Path, line: str, number: str) -> None:
    (tmp_path / "bad.py").write_text(f"{line}\n")
    assert any(number in finding for finding in _findings(tmp_path))


def test_exceptions_name_number_and_reason() -> None:
    for path in (*(ROOT / "deocc").rglob("*.py"), *(ROOT / "bench").rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "# nosec" not in line or re.search(r"# nosec B\d{3}  # \w", line), line


def _calls(path: Path) -> Iterator[tuple[str, set[str], int]]:
    """Dotted name, arguments and line of every call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            words = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
            yield ast.unparse(node.func), words | {ast.unparse(argument) for argument in node.args}, node.lineno


def test_no_pickle_is_read_and_no_shell_started() -> None:
    for path in (path for room in ("deocc", "bench", "tests") for path in (ROOT / room).rglob("*.py")):
        for name, words, line in _calls(path):
            assert name != "torch.load" or "weights_only=True" in words, f"{path}:{line}"
            assert (
                name not in ("yaml.load", "yaml.unsafe_load", "os.system", "os.popen") and "shell=True" not in words
            ), f"{path}:{line}"
            assert "allow_pickle=True" not in words or path.is_relative_to(ROOT / "tests"), f"{path}:{line}"


def test_images_are_opened_as_named_formats() -> None:
    for path in (ROOT / "deocc").rglob("*.py"):
        for name, words, line in _calls(path):
            harmless = any(
                word.startswith(("formats=", "io.BytesIO(png_bytes(")) for word in words
            )  # the second are our own
            assert name != "Image.open" or harmless, f"{path}:{line}"
