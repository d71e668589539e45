"""deocc: face recognition through masks.

An implementation of "Look Through Masks: Towards Masked Face Recognition with De-Occlusion Distillation" (ACM MM 2020).
`import deocc` does not import torch; the names below are imported at first use.
"""

import importlib
import os
from typing import Any

__all__ = ["__version__", "create_embedder", "load", "render"]

__version__ = "0.1.0"

_LAZY = {"create_embedder": "deocc.networks", "load": "deocc.inference.model_folder", "render": "deocc.masking"}

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations otherwise asks a server when it is imported
# OpenMP, which torch loads, otherwise spins at barriers for long: beside other busy processes two threads are slower
# than one. Without any spinning, waking a thread takes longer than many of torch's operations (`make bench`).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT=os.environ.get("GOMP_SPINCOUNT", "1000"))


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
