"""Imports run one way through the rooms, and a light `import deocc` stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[1] / "deocc"
_ORDER: tuple[set[str], ...] = (
    {"_torchvision", "_version", "messages"},
    {"files", "processes"},
    {"__init__", "batch", "geometry", "runs"},
    {"networks", "losses", "masking", "evaluation", "detection"},
    {"data"},
    {"modules", "callbacks"},
    {"inference"},
    {"commands"},
    {"training"},
    {"cli"},
)
_RANK = {room: rank for rank, rooms in enumerate(_ORDER) for room in rooms}
_NEVER = {("modules", "data")}
_FILES = {
    ".".join(["deocc", *path.relative_to(_PACKAGE).with_suffix("").parts]): path
    for path in sorted(_PACKAGE.rglob("*.py"))
}


def _room(file: str) -> str:
    return file.split(".")[1]


def _allowed(importer: str, imported: str) -> bool:
    """Whether a file of one room may import from another: from lower ranks and its own room only."""
    lower = _RANK[imported] < _RANK[importer] and (importer, imported) not in _NEVER
    return importer == imported or lower


def _file_of(module: str) -> str | None:
    """The file behind a dotted name, if it is one of the package's."""
    return next((name for name in (module, f"{module}.__init__") if name in _FILES), None)


def _imports(source: str) -> set[str]:
    """The package's files that a file imports by name, at its top or inside a function."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {_file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            module = node.module or ""
            found |= {_file_of(f"{module}.{alias.name}") or _file_of(module) for alias in node.names}
    return {name for name in found if name is not None}


_GRAPH = {name: _imports(path.read_text(encoding="utf-8")) for name, path in _FILES.items()}


def test_the_reader_sees_every_form_of_import() -> None:
    source = (
        "import deocc.batch\nfrom deocc import geometry as g, __version__\n"
        "def f():\n    from deocc.losses.distances import x\n    import torch\n    from deocc.masking import render\n"
    )
    expected = {"deocc.batch", "deocc.geometry", "deocc.__init__", "deocc.losses.distances", "deocc.masking.__init__"}
    assert _imports(source) == expected


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("data", "masking", True),
        ("losses", "losses", True),
        ("cli", "training", True),
        ("losses", "networks", False),
        ("modules", "data", False),
        ("callbacks", "modules", False),
        ("geometry", "data", False),
    ],
)
def test_the_rule_is_the_one_of_the_house(importer: str, imported: str, allowed: bool) -> None:
    assert _allowed(importer, imported) is allowed


@pytest.mark.parametrize("file", sorted(_FILES))
def test_a_file_imports_only_its_own_room_and_lower_ones(file: str) -> None:
    assert _room(file) in _RANK, f"give the new room {_room(file)} a rank"
    refused = [other for other in sorted(_GRAPH[file]) if not _allowed(_room(file), _room(other))]
    assert not refused


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert sum(len(imported) for imported in _GRAPH.values()) > len(_GRAPH)
    graphlib.TopologicalSorter(_GRAPH).prepare()  # raises CycleError, which names the files


def test_no_file_has_a_name_that_says_nothing() -> None:
    parts = {part for name in _FILES for part in name.split(".")}
    assert not parts & {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize(
    "code",
    ["import deocc", "from deocc.cli import main; main(['--help'])", "from deocc.cli import main; main(['--version'])"],
    ids=["import", "help", "version"],
)
def test_what_needs_no_torch_does_not_import_it(code: str) -> None:
    heavy = "{'torch', 'pytorch_lightning', 'albumentations', 'torchvision', 'numpy'}"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\n{code}\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
