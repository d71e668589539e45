"""Inputs of the properties:

faces and their landmarks, embeddings, scored pairs, and sets of embedded images.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.geometry import TEMPLATES, transform_points

Property = Callable[..., None]
Scores = tuple[Tensor, Tensor]
SEEDS = st.integers(-(2**63), 2**63 - 1)


def for_all(**arguments: st.SearchStrategy[Any]) -> Callable[[Property], Any]:
    """`given`, as two tests: on few examples in the quick suite, and on many, marked slow."""

    def decorate(test: Property) -> Any:
        few, many = (settings.get_profile(name)(given(**arguments)(test)) for name in ("quick", "thorough"))

        @pytest.mark.parametrize(
            "prove", [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
        )
        def both(prove: Property, **fixtures: Any) -> None:
            prove(**fixtures)

        others = [value for name, value in inspect.signature(test).parameters.items() if name not in arguments]
        first = inspect.Parameter("prove", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        both.__name__, both.__doc__ = test.__name__, test.__doc__
        both.__signature__ = inspect.Signature([first, *others])
        return both

    return decorate


def noise(seed: int, *shape: int) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed % 2**63))


def similarity(scale: float, angle: float, x: float, y: float) -> Tensor:
    """(2, 3) float64 matrix that turns by `angle` radians, scales and shifts."""
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[a, -b, x], [b, a, y]], dtype=torch.float64)


def similarities(least: float = 0.02, most: float = 50.0, reach: float = 2000.0) -> st.SearchStrategy[Tensor]:
    """Any turn, scales between two bounds, shifts up to `reach` pixels."""
    shift = st.floats(-reach, reach)
    scale = st.floats(math.log(least), math.log(most)).map(math.exp)
    return st.builds(similarity, scale, st.floats(-math.pi, math.pi), shift, shift)


@st.composite
def faces(draw: st.DrawFn, count: int, size: int) -> Tensor:
    """(count, 3, size, size) in [-1, 1]: flat, at the ends of the range, or smooth noise; each in colour or grey."""
    coarse = noise(draw(SEEDS), count, 3, 6, 6).clamp(-1, 1)
    coarse = draw(st.sampled_from([coarse, coarse.sign(), coarse[..., :1, :1].expand_as(coarse)]))
    grey = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    coarse = torch.where(grey[:, None, None, None], coarse[:, :1], coarse)
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False).clamp(-1, 1)


@st.composite
def landmarks(draw: st.DrawFn, size: int) -> Tensor:
    """(5, 2) of a face that a detector may find in a canonical crop of this side:

    tilted, turned, nearer or farther, not quite in place.
    """
    points = TEMPLATES["canonical"].tensor(size)
    yaw = draw(st.floats(-0.5, 0.5))
    middle, eye = points[:2].mean(0), float(points[1, 0] - points[0, 0])
    points = (points - middle) * torch.tensor([1 - 0.5 * abs(yaw), draw(st.floats(0.85, 1.15))]) + middle
    points[2, 0] += yaw * 0.8 * eye
    scale, angle = draw(st.floats(0.5, 1.3)), draw(st.floats(-0.6, 0.6))
    moved = transform_points(points - middle, similarity(scale, angle, 0, 0).float()) + middle
    offset = torch.tensor([draw(st.floats(-0.1, 0.1)), draw(st.floats(-0.1, 0.1))]) * size
    return moved + offset + 0.03 * scale * eye * noise(draw(SEEDS), 5, 2).clamp(-2, 2)


@st.composite
def embeddings(draw: st.DrawFn, least: int = 1, most: int = 7, dim: int | None = None) -> Tensor:
    """(B, D) float32 on a coarse lattice, so that rows coincide, vanish and lie on lines;

    or of unit length; at scales from 1e-6 to 1e6.
    """
    rows, columns = draw(st.integers(least, most)), dim or draw(st.integers(1, 5))
    cells = st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns)
    lattice = torch.tensor(draw(cells), dtype=torch.float32).view(rows, columns)
    unit = F.normalize(noise(draw(SEEDS), rows, columns), dim=1)
    return draw(st.sampled_from([lattice, unit])) * 10.0 ** draw(st.integers(-6, 6))


@st.composite
def batches(draw: st.DrawFn, least: int = 1) -> Scores:
    """Student (B, D) and teacher (B, D') of one batch."""
    student = draw(embeddings(least))
    return student, draw(embeddings(len(student), len(student)))


@st.composite
def scored_pairs(draw: st.DrawFn, most: int = 30) -> Scores:
    """Similarities with many ties, and whether both faces are one person's; of either kind one at least."""
    pairs = draw(st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=0, max_size=most))
    pairs += [(draw(st.integers(-6, 6)), True), (draw(st.integers(-6, 6)), False)]
    return torch.tensor([score / 7 for score, _ in pairs]), torch.tensor([same for _, same in pairs])


@st.composite
def image_sets(draw: st.DrawFn, least: int = 1) -> tuple[EmbeddingSet, EmbeddingSet]:
    """A gallery of people with unequal numbers of images, and probes made from all of them under masks;

    or all on three axes, in ties.
    """
    images = draw(st.lists(st.integers(1, 6), min_size=least, max_size=6))
    order = torch.randperm(sum(images), generator=torch.Generator().manual_seed(draw(SEEDS) % 2**63))
    identity = (3 * torch.arange(len(images)) + 1).repeat_interleave(torch.tensor(images))[order]
    index, kinds, draws = torch.arange(len(identity)) * 2 + 10, draw(st.integers(1, 3)), draw(st.integers(1, 3))
    masks, spread = kinds * draws, draw(st.floats(0.0, 3.0))
    clean = noise(draw(SEEDS), 20, 3)[identity] + spread * noise(draw(SEEDS), len(index), 3)
    masked = clean.repeat(masks, 1) + spread * noise(draw(SEEDS), len(index) * masks, 3)
    if draw(st.booleans()):
        clean, masked = (F.one_hot(faces.argmax(1), 3).float() for faces in (clean, masked))
    kind = torch.arange(kinds).repeat_interleave(draws * len(index))
    seed = torch.arange(masks).repeat_interleave(len(index)) * 7 - 3
    gallery = EmbeddingSet(
        F.normalize(clean, dim=1), identity, index, torch.full_like(index, -1), torch.zeros_like(index)
    )
    return gallery, EmbeddingSet(F.normalize(masked, dim=1), identity.repeat(masks), index.repeat(masks), kind, seed)


def relabelled(similarity: Tensor, seed: int) -> Tensor:
    """The image under a strictly rising map: ranks replaced by random numbers in rising order."""
    _, rank = torch.unique(similarity, return_inverse=True)
    return (noise(seed, int(rank.max()) + 1).abs() + 0.01).cumsum(0)[rank] - 3
