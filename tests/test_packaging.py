"""The wheel is complete and runs outside the repository; dependencies are declared, optional ones imported lazily."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.conftest import ONE_STEP, ROOT, SMALL, TINY_STAGE1

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
OPTIONAL = {
    "dlib": "dlib-bin",
    "pillow_heif": "pillow-heif",
    "fastapi": "gradio",
    "starlette": "gradio",
    "uvicorn": "gradio",
}
"""Modules that may not be installed here, or come with another distribution, and the requirement that brings them."""
_BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-") for line in requirements}


def _imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """The top-level modules that a file imports, and whether inside a function, `try` or `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.split(".")[0], lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield str(child.module).split(".")[0], lazy
        else:
            yield from _imports(child, lazy or isinstance(child, ast.FunctionDef | ast.Try | ast.If))


def test_every_import_is_declared() -> None:
    plain = _names(PROJECT["project"]["dependencies"])
    optional = plain.union(*(_names(lines) for extra, lines in EXTRAS.items() if extra != "dev"))
    distributions = packages_distributions()
    undeclared = set()
    for path in (ROOT / "deocc").rglob("*.py"):
        for module, lazy in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module == "deocc" or module in sys.stdlib_module_names:
                continue
            found = _names([OPTIONAL[module]] if module in OPTIONAL else distributions.get(module, [module]))
            if not found & (optional if lazy else plain):
                undeclared.add((module, path.name))
    assert undeclared == set()


def test_optional_packages_are_imported_when_used() -> None:
    """Imports of `fit`: without W&B, the optional packages, or what only other commands need."""
    unused = {"wandb", "tensorboard", "onnx", "onnxruntime", "faiss", "gradio", "pyarrow", "dlib"}
    program = f"import sys, deocc.training; print(sorted({unused} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_extras_are_part_of_dev() -> None:
    everything = re.search(r"deocc\[(.+)\]", EXTRAS["dev"][0])
    assert everything is not None
    assert set(everything[1].split(",")) == set(EXTRAS) - {"dev"}


def test_every_folder_is_a_package() -> None:
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "deocc").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"deocc.configs"}


def test_workflow_covers_the_supported_versions() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    classified = {line.rsplit(" :: ", 1)[1] for line in PROJECT["project"]["classifiers"] if "Python :: 3" in line}
    assert set(workflow["jobs"]["check"]["strategy"]["matrix"]["python"]) == classified
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    used = {name for step in steps for words in re.findall(r"\bmake ([a-z -]+)", step) for name in words.split()}
    assert "check" in used
    assert used <= targets


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the package."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("deocc", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = subprocess.run([sys.executable, "-c", _BUILD], cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next((tree / "dist").glob("*.whl"))


def test_wheel_contains_every_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    own = {path.relative_to(ROOT) for path in (ROOT / "deocc").rglob("*") if "__pycache__" not in path.parts}
    own |= {"deocc" / path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {str(path) for path in own if path.suffix} - packed == set()
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_wheel_trains_and_loads_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    short = [*SMALL, *ONE_STEP]
    program = f"""
import deocc, deocc.cli
assert deocc.__file__.startswith({str(installed)!r}), deocc.__file__
deocc.cli.main(["--help"])
deocc.cli.main(["fit", "--config", "inpaint", *{[*short, *TINY_STAGE1]}])
deocc.cli.main(["fit", "--config", "distill", "--config", "trainer/accumulate", *{short}])
print(deocc.load("runs/distill").config["face"]["size"])
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n64\n")
