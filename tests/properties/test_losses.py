"""Properties of the losses on arbitrary batches: invariances, ranges, definitions and finite gradients."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from deocc.losses import (
    IdentityLoss,
    ShardedIdentityLoss,
    discriminator_loss,
    feature_distance,
    gathered_pair_relation_loss,
    gathered_triplet_relation_loss,
    generator_loss,
    gradient_penalty,
    identity_loss,
    instance_relation_loss,
    mask_segmentation_loss,
    masked_l1_loss,
    pair_relation_loss,
    prediction_relation_loss,
    triplet_relation_loss,
)
from tests import oracles
from tests.properties.strategies import SEEDS, Scores, batches, embeddings, for_all, noise

Loss = Callable[[Tensor, Tensor], Tensor]
RELATIONS = pytest.mark.parametrize("loss", [pair_relation_loss, triplet_relation_loss])
MARGIN_TYPES = st.sampled_from(["softmax", "cosface", "arcface"])
ROWS = st.integers(1, 6)


def _gradient(loss: Callable[[Tensor], Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


def _rotation(dim: int, seed: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(noise(seed, dim, dim).double()).Q
    return orthogonal


def _moved(embedding: Tensor, seed: int, scale: float) -> Tensor:
    """Apply a rotation or reflection, a scale and a shift, in float64."""
    size = float(embedding.abs().max()) or 1.0
    return scale * (
        embedding.double() @ _rotation(embedding.shape[1], seed)
        + 3 * size * noise(seed, 1, embedding.shape[1]).double()
    )


@pytest.mark.parametrize(
    ("loss", "oracle", "least"),
    [(pair_relation_loss, oracles.pair_relation, 2), (triplet_relation_loss, oracles.triplet_relation, 3)],
)
@for_all(pair=batches())
def test_relation_equals_oracle(loss: Loss, oracle: Loss, least: int, pair: Scores) -> None:
    student, teacher = (embedding.double() for embedding in pair)
    alike = any(bool((embedding == embedding[0]).all()) for embedding in pair)
    value = float(loss(student, teacher))
    if len(student) < least:
        assert value == 0
    elif not alike:
        assert value == pytest.approx(float(oracle(student, teacher)), rel=1e-9, abs=1e-12)
    assert 0 <= value < (1.5 + 1e-9 if least == 3 else math.inf)


@RELATIONS
@for_all(pair=batches(), seed=SEEDS, exponent=st.integers(-6, 6))
def test_relation_invariance(loss: Loss, pair: Scores, seed: int, exponent: int) -> None:
    student, teacher = (embedding.double() for embedding in pair)
    value = float(loss(student, teacher))
    moved = loss(_moved(student, seed, 10.0**exponent), _moved(teacher, seed + 1, 10.0**-exponent))
    assert float(moved) == pytest.approx(value, rel=1e-6, abs=1e-9)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed % 2**63))
    assert float(loss(student[order], teacher[order])) == pytest.approx(value, rel=1e-9, abs=1e-12)


@RELATIONS
@for_all(student=embeddings(), seed=SEEDS)
def test_relation_of_similar_spaces(loss: Loss, student: Tensor, seed: int) -> None:
    assert float(loss(student, student)) == 0
    assert float(loss(student.double(), _moved(student, seed, 3.0))) == pytest.approx(0, abs=1e-9)


@RELATIONS
@for_all(pair=batches(), exponents=st.tuples(st.integers(-24, 24), st.integers(-24, 24)))
def test_relation_gradient_finite(loss: Loss, pair: Scores, exponents: tuple[int, int]) -> None:
    student, teacher = (embedding * 10.0**exponent for embedding, exponent in zip(pair, exponents, strict=True))
    (slope,) = _gradient(lambda s: loss(s, teacher), student)
    assert slope.dtype == torch.float32 and bool(slope.isfinite().all())


@RELATIONS
@for_all(pair=batches())
def test_relation_gradient_orthogonal(loss: Loss, pair: Scores) -> None:
    student, teacher = (embedding.double() for embedding in pair)
    (slope,) = _gradient(lambda s: loss(s, teacher), student)
    size = float(slope.abs().max())
    assert float(slope.sum(0).abs().max()) <= 1e-9 * (1 + size)
    assert abs(float((slope * student).sum())) <= 1e-9 * (1 + size * float(student.abs().max()))


@for_all(pair=batches(), max_anchors=st.integers(1, 9), start=st.integers(0, 50))
def test_triplet_estimates_average_to_loss(pair: Scores, max_anchors: int, start: int) -> None:
    student, teacher = (embedding.double() for embedding in pair)
    steps = range(start, start + math.ceil(len(student) / max_anchors))

    def estimate(step: int) -> Callable[[Tensor], Tensor]:
        return lambda s: triplet_relation_loss(s, teacher, max_anchors=max_anchors, step=step)

    value = torch.stack([estimate(step)(student) for step in steps]).mean()
    torch.testing.assert_close(value, triplet_relation_loss(student, teacher), rtol=1e-9, atol=1e-12)
    slope = torch.stack([_gradient(estimate(step), student)[0] for step in steps]).mean(0)
    expected = _gradient(lambda s: triplet_relation_loss(s, teacher), student)[0]
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-9 * (1 + float(expected.abs().max())))
    if max_anchors >= len(student):
        assert torch.equal(estimate(start)(student), triplet_relation_loss(student, teacher))


@for_all(pair=batches())
def test_gathered_loss_in_one_process(pair: Scores) -> None:
    assert torch.equal(gathered_pair_relation_loss(*pair), pair_relation_loss(*pair))
    assert torch.equal(gathered_triplet_relation_loss(*pair), triplet_relation_loss(*pair))


@st.composite
def triples(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and centres, (B, D) float64 each."""
    student = draw(embeddings())
    others = [noise(draw(SEEDS), *student.shape) for _ in range(2)]
    return student.double(), others[0].double(), others[1].double()


@for_all(given=triples(), beta=st.floats(0, 1), seed=SEEDS)
def test_soft_instance_rotation_and_target(given: tuple[Tensor, Tensor, Tensor], beta: float, seed: int) -> None:
    student, teacher, centers = given
    ours, theirs, middle = (side @ _rotation(student.shape[1], seed) for side in given)
    value = instance_relation_loss(student, teacher, centers, beta)
    torch.testing.assert_close(instance_relation_loss(ours, theirs, middle, beta), value, rtol=1e-9, atol=1e-9)
    target = F.normalize(torch.lerp(teacher, centers, beta), dim=1) if beta else teacher
    assert float(instance_relation_loss(target, teacher, centers, beta)) == pytest.approx(0, abs=1e-24)


@for_all(given=triples(), scale=st.floats(0.1, 20), temperature=st.floats(0.2, 8), seed=SEEDS)
def test_prediction_is_a_divergence(
    given: tuple[Tensor, Tensor, Tensor], scale: float, temperature: float, seed: int
) -> None:
    student, teacher, centers = (F.normalize(side, dim=1) for side in given)
    value = float(prediction_relation_loss(student, teacher, centers, scale, temperature))
    assert value >= -1e-12
    assert value == pytest.approx(
        oracles.prediction_relation(student, teacher, centers, scale, temperature), rel=1e-7, abs=1e-9
    )
    assert float(prediction_relation_loss(teacher, teacher, centers, scale, temperature)) == 0
    rotation = _rotation(student.shape[1], seed)
    ours, theirs, middle = (side @ rotation for side in (student, teacher, centers.flip(0)))
    assert float(prediction_relation_loss(ours, theirs, middle, scale, temperature)) == pytest.approx(
        value, rel=1e-6, abs=1e-9
    )


@for_all(
    count=ROWS,
    identities=ROWS,
    seed=SEEDS,
    scale=st.floats(0.1, 64),
    margins=st.tuples(st.floats(0, 1.5), st.floats(0, 1.5)),
)
def test_loss_increases_with_margin(
    count: int, identities: int, seed: int, scale: float, margins: tuple[float, float]
) -> None:
    cosine = noise(seed, count, identities).double().tanh() * 0.99
    identity = torch.arange(count) % identities
    plain = F.cross_entropy(scale * cosine, identity)
    small, large = sorted(margins)
    for margin_type in ("softmax", "cosface", "arcface"):
        torch.testing.assert_close(
            identity_loss(cosine, identity, margin_type, 0.0, scale), plain, rtol=1e-9, atol=1e-12
        )
        values = [float(identity_loss(cosine, identity, margin_type, margin, scale)) for margin in (small, large)]
        assert 0 <= float(plain) <= values[0] * (1 + 1e-9) + 1e-12 <= (values[1] * (1 + 1e-9) + 1e-12) * (1 + 1e-9)
        expected = oracles.identity_loss(cosine, identity.tolist(), margin_type, large, scale)
        assert values[1] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@for_all(
    cosines=st.lists(st.sampled_from([-1.0, -1 + 1e-7, 0.0, 1 - 1e-7, 1.0]), min_size=2, max_size=5),
    margin_type=MARGIN_TYPES,
)
def test_margin_gradient_finite_at_ends(cosines: list[float], margin_type: str) -> None:
    (slope,) = _gradient(
        lambda c: identity_loss(c, torch.zeros(1, dtype=torch.int64), margin_type, 0.5), torch.tensor([cosines])
    )
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) <= 64 * 2000


@st.composite
def mixtures(draw: st.DrawFn, identities: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, 3), some of them zero, with identities (B, T), some repeated, and mixture weights (B, T)."""
    count, parts = draw(ROWS), draw(st.integers(1, 3))
    cells = draw(st.lists(st.integers(0, identities - 1), min_size=count * parts, max_size=count * parts))
    share = noise(draw(SEEDS), count, parts).softmax(1)
    return draw(embeddings(count, count, 3)), torch.tensor(cells).view(count, parts), share


@for_all(given=mixtures(5), margin_type=MARGIN_TYPES, margin=st.floats(0, 1.2), scale=st.floats(1, 64), seed=SEEDS)
def test_sharded_head_equals_whole_head(
    given: tuple[Tensor, Tensor, Tensor], margin_type: str, margin: float, scale: float, seed: int
) -> None:
    embedding, identity, share = (given[0].double(), given[1], given[2].double())
    whole = IdentityLoss(5, 3, margin_type, margin, scale).double()
    sharded = ShardedIdentityLoss(5, 3, margin_type, margin, scale).double()
    centers = noise(seed, 5, 3).double()
    found = []
    for head in (whole, sharded):
        head.initialise(centers)
        leaf = embedding.clone().requires_grad_()
        loss = head(leaf, identity, share)
        found.append((loss.detach(), *torch.autograd.grad(loss, (leaf, head.weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9 * (1 + float(one.abs().max())))
        assert bool(other.isfinite().all())


@for_all(given=mixtures(4), exponent=st.integers(-3, 3), margin_type=MARGIN_TYPES)
def test_identity_head_ignores_norms(given: tuple[Tensor, Tensor, Tensor], exponent: int, margin_type: str) -> None:
    embedding, identity = F.normalize(given[0], dim=1).double(), given[1][:, 0]
    head = IdentityLoss(4, 3, margin_type, 0.3).double()
    head.initialise(noise(1, 4, 3).double())
    value = head(embedding, identity)
    torch.testing.assert_close(head(embedding * 10.0**exponent, identity), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        head(embedding, identity[:, None], torch.ones(len(identity), 1).double()), value, rtol=1e-9, atol=1e-12
    )


LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8)


@for_all(real=LOGITS, fake=LOGITS)
def test_adversarial_definition(real: Sequence[float], fake: Sequence[float]) -> None:
    clean, completed = torch.tensor(real).double(), torch.tensor(fake).double()
    hinge = sum(max(0.0, 1 - value) for value in real) / len(real) + sum(max(0.0, 1 + value) for value in fake) / len(
        fake
    )
    mean = sum(fake) / len(fake)
    assert float(discriminator_loss(clean, completed, "hinge")) == pytest.approx(hinge, abs=1e-9)
    assert float(discriminator_loss(clean, completed, "wgan")) == pytest.approx(mean - sum(real) / len(real), abs=1e-9)
    for kind in ("hinge", "wgan"):
        assert float(generator_loss(completed, kind)) == pytest.approx(-mean, abs=1e-9)


@for_all(seed=SEEDS, length=st.floats(0, 5), count=ROWS)
def test_penalty_of_linear_discriminator(seed: int, length: float, count: int) -> None:
    direction = length * F.normalize(noise(seed, 12).double(), dim=0)
    real, fake = noise(seed, 2, count, 3, 2, 2).double()
    penalty = gradient_penalty(lambda image: image.flatten(1) @ direction, real, fake, torch.linspace(0, 1, count))
    assert float(penalty) == pytest.approx((length - 1) ** 2, abs=1e-9)


@for_all(
    seed=SEEDS, count=st.integers(1, 3), covered=st.floats(0, 1), weights=st.tuples(st.floats(0, 3), st.floats(0, 3))
)
def test_masked_l1_definition(seed: int, count: int, covered: float, weights: tuple[float, float]) -> None:
    generated, face = noise(seed, 2, count, 2, 3, 4).double()
    mask = (torch.rand(count, 1, 3, 4, generator=torch.Generator().manual_seed(seed % 2**63)) < covered).double()
    value = float(masked_l1_loss(generated, face, mask, *weights))
    assert value == pytest.approx(oracles.masked_l1(generated, face, mask, *weights), rel=1e-9, abs=1e-12)
    assert (
        float(masked_l1_loss(face, generated, mask, *weights)) == pytest.approx(value)
        and float(masked_l1_loss(face, face, mask)) == 0
    )
    assert float(masked_l1_loss(face + 3 * (generated - face), face, mask, *weights)) == pytest.approx(3 * value)
    assert float(masked_l1_loss(generated, face, 1 - mask, *weights[::-1])) == pytest.approx(value)


@for_all(seed=SEEDS, count=st.integers(1, 3), covered=st.floats(0, 1), size=st.sampled_from([0.1, 3.0, 1e3, 1e6]))
def test_segmentation_averages_images(seed: int, count: int, covered: float, size: float) -> None:
    logits = noise(seed, count, 1, 4, 4) * size
    mask = (torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed % 2**63)) < covered).float()
    value = mask_segmentation_loss(logits, mask)
    assert float(value) >= 0 and bool(_gradient(lambda x: mask_segmentation_loss(x, mask), logits)[0].isfinite().all())
    torch.testing.assert_close(mask_segmentation_loss(logits.flip(0), mask.flip(0)), value)
    each = torch.stack([mask_segmentation_loss(logits[i : i + 1], mask[i : i + 1]) for i in range(count)])
    torch.testing.assert_close(each.mean(), value)


@for_all(seed=SEEDS, sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)), scale=st.floats(1e-3, 1e3))
def test_feature_distance_range(seed: int, sizes: tuple[int, int], scale: float) -> None:
    ours, theirs = ([noise(seed + side, 2, channels, 2).double() for channels in sizes] for side in (0, 1))
    value = float(feature_distance(ours, theirs))
    assert 0 <= value <= 4 + 1e-9 and float(feature_distance(ours, ours)) == 0
    assert float(feature_distance([maps * scale for maps in ours], theirs)) == pytest.approx(value, rel=1e-7, abs=1e-9)
    assert float(feature_distance([-maps for maps in ours], ours)) == pytest.approx(4)
