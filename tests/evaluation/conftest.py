"""Small sets of embeddings whose people are told apart to a chosen degree."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from deocc.evaluation.bootstrap import Interval, bootstrap_figures, paired_interval
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.verification import PairScores

PEOPLE, IMAGES, KINDS, SEEDS = 6, 5, 2, 3
MakeSets = Callable[..., tuple[EmbeddingSet, EmbeddingSet]]


def paired_bootstrap(
    name: str, firsts: Sequence[PairScores], seconds: Sequence[PairScores], replicates: int = 1000, seed: int = 0
) -> Interval:
    """Estimate a figure of one system minus that of another, each given by its pairs of every part."""
    one, other = (
        bootstrap_figures([[pairs] for pairs in parts], replicates, seed, [name])[name] for parts in (firsts, seconds)
    )
    return paired_interval(one, other)


@pytest.fixture
def make_sets() -> MakeSets:
    """A function from a noise level to a clean gallery and its probes; equal ids whatever the noise."""

    def make(noise: float, seed: int = 0, dimension: int = 16) -> tuple[EmbeddingSet, EmbeddingSet]:
        generator = torch.Generator().manual_seed(seed)
        identity = torch.arange(PEOPLE).repeat_interleave(IMAGES)
        index = torch.arange(PEOPLE * IMAGES) + 100
        clean = torch.randn(PEOPLE, dimension, generator=generator)[identity]
        clean = clean + 0.5 * torch.randn(len(index), dimension, generator=generator)
        gallery = EmbeddingSet(
            F.normalize(clean, dim=1), identity, index, torch.full_like(index, -1), torch.zeros_like(index)
        )
        masks = KINDS * SEEDS
        probe = clean.repeat(masks, 1) + noise * torch.randn(len(index) * masks, dimension, generator=generator)
        kind = torch.arange(KINDS).repeat_interleave(SEEDS * len(index))
        mask_seed = torch.randint(2**62, (len(probe),), generator=torch.Generator().manual_seed(5))
        return gallery, EmbeddingSet(
            F.normalize(probe, dim=1), identity.repeat(masks), index.repeat(masks), kind, mask_seed
        )

    return make
