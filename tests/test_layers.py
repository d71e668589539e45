"""Imports go one way through the package, and `import deocc` stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[1] / "deocc"
_ORDER: tuple[set[str], ...] = (
    {"_torchvision", "messages"},
    {"files", "processes"},
    {"__init__", "batch", "geometry", "runs"},
    {"networks", "losses", "masking", "evaluation", "detection"},
    {"data"},
    {"inference"},
    {"modules", "callbacks"},
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


def _allowed(importer: str, imported: str) -> bool:
    """A file imports from its own room and from lower ones."""
    lower = _RANK[imported] < _RANK[importer] and (importer, imported) not in _NEVER
    return importer == imported or lower


def _file_of(module: str) -> str | None:
    """The file of a dotted name, if it belongs to the package."""
    return next((name for name in (module, f"{module}.__init__") if name in _FILES), None)


def _imports(source: str) -> set[str]:
    """The package's files that a file imports, at its top or inside a function."""
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


def test_every_form_of_import_is_found() -> None:
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
        ("inference", "callbacks", False),
        ("geometry", "data", False),
    ],
)
def test_order_of_the_rooms(importer: str, imported: str, allowed: bool) -> None:
    assert _allowed(importer, imported) is allowed


@pytest.mark.parametrize("file", sorted(_FILES))
def test_file_imports_only_lower_rooms(file: str) -> None:
    room = file.split(".")[1]
    assert room in _RANK, f"give the new room {room} a rank"
    assert [other for other in sorted(_GRAPH[file]) if not _allowed(room, other.split(".")[1])] == []


def test_imports_have_no_cycle() -> None:
    assert sum(len(imported) for imported in _GRAPH.values()) > len(_GRAPH)
    graphlib.TopologicalSorter(_GRAPH).prepare()  # CycleError names the files


def test_no_file_has_a_meaningless_name() -> None:
    parts = {part for name in _FILES for part in name.split(".")}
    assert not parts & {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize(
    "code",
    ["import deocc", "from deocc.cli import main; main(['--help'])", "from deocc.cli import main; main(['--version'])"],
    ids=["import", "help", "version"],
)
def test_light_commands_import_no_torch(code: str) -> None:
    heavy = "{'torch', 'pytorch_lightning', 'albumentations', 'torchvision', 'numpy'}"
    program = f"import sys\n{code}\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["load", "create_embedder", "render"])
def test_public_names_are_imported_lazily(name: str) -> None:
    subprocess.run([sys.executable, "-c", f"import deocc; assert callable(deocc.{name})"], check=True)
