"""The most similar people of a gallery, by FAISS.

[0] Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", IEEE Transactions on Big Data 2021.
[1] Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs", IEEE
    TPAMI 2020: M, efConstruction and efSearch.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 200, 256  # M, efConstruction, efSearch of [1]. OURS, by the recall that the tests ask for
_PER_LIST: Final = 39  # faces a list, below which FAISS warns that clusters are trained on too few
_PROBED: Final = 4  # every fourth list is searched. OURS


class Match(NamedTuple):
    """A person found."""

    person: str
    similarity: float
    """Cosine to the most similar of the person's faces, in [-1, 1]."""
    place: int
    """Which of the gallery's faces that is."""


class PersonIndex:
    """Finds people by the most similar of their faces.

    Args:
        embeddings: (N, D) unit vectors.
        people: N names, whose faces they are.
        kind: a name of `list_indexes()`. "flat" compares with every face; the others find nearly all of the most similar ones faster.

    Raises:
        ValueError: no such kind, no faces, or not a name each.
        ImportError: faiss is not installed.
    """

    def __init__(self, embeddings: NDArray[np.float32], people: Sequence[str], kind: str = "flat") -> None:
        if kind not in _KINDS:
            raise ValueError(f"unknown index {kind!r}: choose one of {', '.join(_KINDS)}")
        if len(embeddings) == 0 or len(embeddings) != len(people):
            raise ValueError(f"expected embeddings (N, D) and N names, N at least 1, got {embeddings.shape} and {len(people)} names")
        self._people = list(people)
        self._most = int(np.unique(self._people, return_counts=True)[1].max())
        self._index = _KINDS[kind](import_faiss(), np.ascontiguousarray(embeddings, dtype=np.float32))

    def search(self, embeddings: NDArray[np.float32], top: int) -> list[list[Match]]:
        """The `top` most similar people, or all where there are fewer, the most similar first, for each of (Q, D) unit vectors.

        So many faces are fetched that they belong to `top` people even where each has as many as the one who has most.
        """
        faces = min(top * self._most, len(self._people))
        similarities, places = self._index.search(np.ascontiguousarray(embeddings, dtype=np.float32), faces)
        return [self._people_of(*row)[:top] for row in zip(similarities.tolist(), places.tolist(), strict=True)]

    def _people_of(self, similarities: list[float], places: list[int]) -> list[Match]:
        best: dict[str, Match] = {}
        for similarity, place in zip(similarities, places, strict=True):
            if place >= 0:  # -1 fills up where fewer were found
                best.setdefault(self._people[place], Match(self._people[place], similarity, place))
        return list(best.values())


def list_indexes() -> tuple[str, ...]:
    """Names of the kinds of index."""
    return tuple(_KINDS)


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError('deocc identify needs the package faiss-cpu: pip install "deocc[identify]"') from None
    return faiss


def _flat(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    return index


def _ivf(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    """Lists of similar faces [0], about as many as each holds; those nearest to the probe are searched."""
    count, dimension = embeddings.shape
    lists = max(1, min(round(count**0.5), count // _PER_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(embeddings)
    index.add(embeddings)
    index.nprobe = -(-lists // _PROBED)
    return index


def _hnsw(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    index = faiss.IndexHNSWFlat(embeddings.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD_WIDTH, _SEARCH_WIDTH
    index.add(embeddings)
    return index


_KINDS: Final[dict[str, Callable[[Any, NDArray[np.float32]], Any]]] = {"flat": _flat, "ivf": _ivf, "hnsw": _hnsw}
