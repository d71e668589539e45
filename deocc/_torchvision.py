"""Make torchvision importable beside a CPU-only torch. Import this module before Lightning, torchmetrics or timm.

The torchvision wheel for Linux links CUDA libraries. Without them its compiled operators cannot be loaded, and
`import torchvision` fails because the operator `torchvision::nms` does not exist. Declaring the signatures is enough to
import it; nothing in deocc calls these operators.
"""

import importlib.machinery
import importlib.util

import torch

_SIGNATURE = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_operators() -> torch.library.Library | None:
    """Declare torchvision's operators if its extension cannot be loaded."""
    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or not spec.submodule_search_locations:
        return None
    extension = importlib.machinery.PathFinder.find_spec("_C", [spec.submodule_search_locations[0]])
    try:
        torch.ops.load_library(extension.origin if extension is not None else "")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(_SIGNATURE.format(name))
        return library
    return None


_LIBRARY = _declare_operators()  # kept alive: torch withdraws the operators of a library that is garbage collected
