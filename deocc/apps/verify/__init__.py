"""`deocc verify A B`: whether two photos show one person, on what that rests, and how often it is wrong."""

from deocc.apps.verify.command import main

__all__ = ["main"]
