"""`deocc demo`: a local web page on which a photo is masked, completed, compared with a second one, and looked for among the ORL people."""

from deocc.apps.demo.command import main

__all__ = ["main"]
