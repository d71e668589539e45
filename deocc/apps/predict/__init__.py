"""`deocc predict PHOTOS...`: the mask, the completed face and the embedding of every face, with a row for every input."""

from deocc.apps.predict.command import main
from deocc.apps.predict.embeddings import EmbeddedFace, EmbeddingFile

__all__ = ["EmbeddedFace", "EmbeddingFile", "main"]
