"""Make third-party packages importable and quiet on a bare, offline CPU machine, before any of them is imported.

Two traps are cured here, and only here:

* The published Linux wheel of torchvision links CUDA libraries. Beside a CPU-only torch its compiled operators cannot be loaded and
  `import torchvision` fails on the missing operator `torchvision::nms`. Declaring the operators' signatures is enough to import it.
* albumentations asks a server for updates when it is imported.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_MISSING_OPERATORS = ("nms", "qnms")
_declared: list[object] = []  # a torch Library withdraws its operators when it is garbage collected


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators at the moment torchvision is first looked for, so that `import deocc` needs no torch."""

    asked = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not self.asked:
            self.asked = True  # a finder that removed itself here would make the import system skip the next one
            _declare_torchvision_operators()
        return None


def _declare_torchvision_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or not spec.submodule_search_locations:
        return
    if _extension_loads(torch, spec.submodule_search_locations[0]):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in _MISSING_OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _extension_loads(torch: ModuleType, folder: str) -> bool:
    extension = importlib.machinery.PathFinder.find_spec("_C", [folder])
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


def prepare() -> None:
    """Install the torchvision guard and silence albumentations' update check. Calling it twice does nothing more."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if "torchvision" not in sys.modules and not any(isinstance(finder, _TorchvisionGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionGuard())
