"""Where a detector's weights lie: a file of the user's, or one that an installed package ships."""

import importlib.util
from pathlib import Path

_PACKAGE = "face_recognition_models"
REMEDY = 'pip install "deocc[photos]"'


def given_file(weights: str) -> Path:
    """The file at the path `weights`.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no detector weights at {path.absolute()}: give the path of an existing file")
    return path


def packaged_file(name: str) -> Path:
    """The file `models/NAME` of the package face-recognition-models.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: the package lacks the file.
    """
    # Found, not imported: the package's __init__ needs pkg_resources, which new setuptools no longer have.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package face-recognition-models, which ships {name}, is not installed: {REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name} in {path.parent}: reinstall face-recognition-models")
    return path
