"""`deocc ablate`: train and compare the variants of a plan."""

from deocc.commands.ablate.command import main

__all__ = ["main"]
