"""deocc: recognise faces through masks.

An implementation of "Look Through Masks: Towards Masked Face Recognition with De-Occlusion Distillation" (ACM MM 2020).
Importing the package is light: torch and its relatives are imported by the room that needs them.
"""

from deocc import _environment
from deocc._version import __version__

__all__ = ["__version__"]

_environment.prepare()
