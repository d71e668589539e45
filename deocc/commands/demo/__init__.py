"""`deocc demo`: a local web page."""

from deocc.commands.demo.command import main

__all__ = ["main"]
