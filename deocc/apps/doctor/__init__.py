"""`deocc doctor`: what is installed and works, what is wrong, and the command that mends it."""

from deocc.apps.doctor.command import main
from deocc.apps.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "main"]
