"""`deocc export`: the trained system as one file that runs without deocc, compared with torch on real faces before it is written."""

from deocc.apps.export.checks import Accuracy, Parity
from deocc.apps.export.command import main
from deocc.apps.export.writing import Export, export

__all__ = ["Accuracy", "Export", "Parity", "export", "main"]
