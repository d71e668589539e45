"""deocc: recognise faces through masks.

An implementation of "Look Through Masks: Towards Masked Face Recognition with De-Occlusion Distillation" (ACM MM 2020).
Importing the package is light: torch and its relatives are imported by the room that needs them.
"""

import importlib
from typing import Any

from deocc import _environment
from deocc._version import __version__

__all__ = ["__version__", "load"]

_environment.prepare()


def __getattr__(name: str) -> Any:
    """`deocc.load`, which is `deocc.inference.model_folder.load`, imported when it is first asked for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("deocc.inference.model_folder").load
