"""`deocc demo`: a local web page that masks, completes, compares and identifies a face."""

from deocc.commands.demo.command import main

__all__ = ["main"]
