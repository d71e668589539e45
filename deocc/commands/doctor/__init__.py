"""`deocc doctor`: check the installation, a run and a data folder."""

from deocc.commands.doctor.command import main

__all__ = ["main"]
