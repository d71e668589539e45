"""Relational losses against loops over their definitions, invariances, and defects known of the public code."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels import textbook_triplet_relation
from deocc.losses import (
    instance_relation_loss,
    pair_relation_loss,
    prediction_relation_loss,
    triplet_relation_loss,
)
from deocc.losses.distances import Angles, DistanceDifference, squared_distances
from tests import oracles

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = pytest.mark.parametrize("loss", [pair_relation_loss, triplet_relation_loss])
ORACLES = pytest.mark.parametrize(
    ("loss", "oracle"), [(pair_relation_loss, oracles.pair_relation), (triplet_relation_loss, oracles.triplet_relation)]
)


def embeddings(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def rotation(dim: int, seed: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))).Q
    return orthogonal


def assert_equals(loss: Loss, oracle: Loss, student: Tensor, teacher: Tensor, rel: float = 1e-5) -> None:
    """Compare value and gradient."""
    assert float(loss(student, teacher)) == pytest.approx(float(oracle(student, teacher)), rel=rel)
    expected = gradient(oracle, student, teacher)
    assert (gradient(loss, student, teacher) - expected).norm() < 1e-4 * expected.norm()


@ORACLES
@pytest.mark.parametrize(("student_dim", "teacher_dim"), [(5, 5), (3, 9)])
def test_relation_equals_oracle(loss: Loss, oracle: Loss, student_dim: int, teacher_dim: int) -> None:
    assert_equals(loss, oracle, embeddings(8, student_dim, 0), embeddings(8, teacher_dim, 1))


@ORACLES
def test_relation_linear_part_of_huber(loss: Loss, oracle: Loss) -> None:
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1], [50.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [30.0, 0.0], [-40.0, 0.0], [0.0, 1.0]])
    assert_equals(loss, oracle, student, teacher)


@pytest.mark.parametrize("size", [64, 128])
def test_triplet_equals_textbook_form(size: int) -> None:
    def textbook(student: Tensor, teacher: Tensor) -> Tensor:
        return textbook_triplet_relation(student.double(), teacher.double())

    assert_equals(triplet_relation_loss, textbook, embeddings(size, 512, 45), embeddings(size, 512, 46))


@LOSSES
def test_relation_gradcheck(loss: Loss) -> None:
    student, teacher = embeddings(6, 4, 2, torch.float64).requires_grad_(), embeddings(6, 3, 3, torch.float64)
    assert loss(student, teacher).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@LOSSES
def test_relation_similarity_invariance(loss: Loss) -> None:
    student, teacher = embeddings(9, 6, 4), embeddings(9, 6, 5)
    moved_student, moved_teacher = 7 * student @ rotation(6, 0) + 3, 1e-4 * teacher @ rotation(6, 1) - 2e-4
    assert float(loss(moved_student, moved_teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-4)
    assert float(loss(teacher, teacher)) == 0
    assert float(loss(5 * teacher @ rotation(6, 2) + 1, teacher)) == pytest.approx(0, abs=1e-10)


@LOSSES
@pytest.mark.parametrize("scale", [1e-24, 1e-20, 1e20])
def test_gradient_of_tiny_and_huge_embeddings(loss: Loss, scale: float) -> None:
    """The gradient by unscaled embeddings does not depend on the scale; in float32, 1 / scale^2 would overflow."""
    student, teacher = embeddings(8, 5, 0), embeddings(8, 4, 1)
    expected, scaled = gradient(loss, student, teacher), gradient(loss, student * scale, teacher).double() * scale
    assert (scaled - expected).norm() < 1e-5 * expected.norm()


@LOSSES
def test_relation_permutation(loss: Loss) -> None:
    student, teacher, order = embeddings(7, 5, 7), embeddings(7, 5, 8), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert float(loss(student[order], teacher[order])) == pytest.approx(float(loss(student, teacher)), rel=1e-5)
    torch.testing.assert_close(gradient(loss, student[order], teacher[order]), gradient(loss, student, teacher)[order])
    assert float(loss(student[order], teacher)) != pytest.approx(float(loss(student, teacher)), rel=1e-3)


@ORACLES
def test_relation_with_duplicates(loss: Loss, oracle: Loss) -> None:
    student, teacher = embeddings(7, 5, 9), embeddings(7, 5, 10)
    student[3], student[4], teacher[6] = student[0], student[0], teacher[1]
    assert float(loss(student, teacher)) == pytest.approx(float(oracle(student, teacher)), rel=1e-5)


@LOSSES
@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-5, 1e-4, 1e-3, 3e-3])
def test_near_duplicates_bounded_gradient(loss: Loss, gap: float) -> None:
    student, teacher = embeddings(16, 32, 11), embeddings(16, 32, 12)
    student[1] = student[0] + gap * embeddings(1, 32, 13)[0]
    found = gradient(loss, student, teacher)
    assert found.isfinite().all() and found.norm() < 20


@LOSSES
@pytest.mark.parametrize(("count", "repeats"), [(0, 1), (1, 1), (2, 1), (1, 5)])
def test_degenerate_batch_gives_zero(loss: Loss, count: int, repeats: int) -> None:
    student, teacher = (embeddings(count, 4, seed).repeat(repeats, 1) for seed in (14, 15))
    assert float(loss(student, teacher)) == pytest.approx(0, abs=1e-12)  # of two images every relative distance is 1
    torch.testing.assert_close(gradient(loss, student, teacher), torch.zeros(count * repeats, 4))


@LOSSES
def test_relation_propagates_nan(loss: Loss) -> None:
    student = embeddings(5, 4, 16)
    student[2, 1] = math.nan
    assert math.isnan(float(loss(student, embeddings(5, 4, 17))))


@LOSSES
def test_relation_ignores_autocast(loss: Loss) -> None:
    student, teacher = embeddings(8, 16, 18), embeddings(8, 16, 19)
    value, slope = loss(student, teacher), gradient(loss, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher), value)
        assert torch.equal(gradient(loss, student, teacher), slope)


@LOSSES
def test_relation_of_half_precision(loss: Loss) -> None:
    student, teacher = embeddings(6, 4, 24).bfloat16(), embeddings(6, 4, 25).bfloat16()
    assert loss(student, teacher).dtype == torch.float32
    assert gradient(loss, student, teacher).dtype == torch.bfloat16


@ORACLES
def test_relation_of_close_embeddings(loss: Loss, oracle: Loss) -> None:
    student, teacher = (
        F.normalize(embeddings(1, 16, 21) + 0.002 * embeddings(8, 16, seed), dim=1) for seed in (22, 23)
    )
    assert float(loss(student, teacher)) == pytest.approx(float(oracle(student, teacher)), rel=1e-4)


@pytest.mark.parametrize("cosine", [0.99, 0.999, 0.9999])
def test_close_distances_under_autocast(cosine: float) -> None:
    batch = embeddings(32, 512, 20)
    across = F.normalize(batch[1] - (batch[1] @ batch[0]) * batch[0], dim=0)
    batch[1] = cosine * batch[0] + math.sqrt(1 - cosine**2) * across
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = float(squared_distances(batch)[0, 1].sqrt())
    assert found == pytest.approx(float((batch[0].double() - batch[1].double()).norm()), rel=1e-6)
    assert found == pytest.approx(math.sqrt(2 - 2 * cosine), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_squared_distances_of_any_batch(count: int) -> None:
    batch = embeddings(count, 4, 50, torch.float64).requires_grad_()
    expected = (batch[None] - batch[:, None]).square().sum(2)
    torch.testing.assert_close(squared_distances(batch), expected)
    assert not squared_distances(batch.repeat(2, 1))[:count, count:].diagonal().any()
    weight = embeddings(count, count, 51, torch.float64)  # not symmetric
    slopes = [torch.autograd.grad((weight * each).sum(), batch)[0] for each in (squared_distances(batch), expected)]
    torch.testing.assert_close(*slopes)


def test_zero_distance_has_zero_gradient() -> None:
    squared = squared_distances(embeddings(4, 3, 52)[[0, 0, 1, 2]]).requires_grad_()
    teacher = squared_distances(embeddings(4, 3, 53))
    DistanceDifference.apply(squared, teacher).backward()  # type: ignore[no-untyped-call]
    assert squared.grad is not None
    assert not squared.grad[:2, :2].any() and squared.grad[2:, :2].all()


def test_gradient_of_close_embeddings() -> None:
    """Differences of embeddings whose distance is a thousandth of their length keep their direction in float32."""
    student, teacher = (F.normalize(embeddings(1, 16, 54) + 0.001 * embeddings(8, 16, s), dim=1) for s in (55, 56))
    expected = gradient(oracles.pair_relation, student.double(), teacher)
    assert (gradient(pair_relation_loss, student, teacher) - expected).norm() < 1e-4 * expected.norm()


def test_angles_equal_cosines_of_directions() -> None:
    batch, rows, arms = embeddings(9, 4, 47, torch.float64), slice(1, 9, 3), slice(2, 7)
    squared = squared_distances(batch)
    inverse = torch.where(squared > 0, squared.rsqrt(), torch.zeros_like(squared))
    angles = Angles.at(squared, inverse, rows, arms)
    directions = F.normalize(batch[None] - batch[:, None], dim=2)[rows]
    expected = directions[:, arms] @ directions.mT
    torch.testing.assert_close(angles.cosines(out=torch.empty_like(expected)), expected)


@pytest.mark.parametrize("elements", [1, 30, 99, 100, 250, 399, 400])
def test_triplet_pieces_change_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one arm of one anchor, of several arms, of one anchor, and of several anchors with a rest."""
    student, teacher = embeddings(10, 8, 26, torch.float64), embeddings(10, 8, 27, torch.float64)
    value, slope = triplet_relation_loss(student, teacher), gradient(triplet_relation_loss, student, teacher)
    monkeypatch.setattr("deocc.losses.distances.CHUNK_ELEMENTS", {"cpu": elements})
    torch.testing.assert_close(triplet_relation_loss(student, teacher), value)
    torch.testing.assert_close(gradient(triplet_relation_loss, student, teacher), slope)


def test_triplet_saves_only_batch_squares() -> None:
    sizes: list[int] = []
    student, teacher = embeddings(40, 300, 28).requires_grad_(), embeddings(40, 300, 29)

    def record(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        triplet_relation_loss(student, teacher)
    assert max(sizes) <= max(40 * 40, 40 * 300)


@pytest.mark.parametrize(
    ("anchors", "max_anchors", "steps"),
    [(None, 1, 10), (None, 3, 4), (None, 4, 3), (slice(2, 9), 3, 3), (None, 99, 1)],
)
def test_triplet_estimates_average_to_loss(anchors: slice | None, max_anchors: int, steps: int) -> None:
    student, teacher = embeddings(10, 5, 26, torch.float64), embeddings(10, 5, 27, torch.float64)

    def estimate(step: int) -> Loss:
        return lambda s, t: triplet_relation_loss(s, t, anchors, max_anchors, step)

    values = [float(estimate(step)(student, teacher)) for step in range(steps)]
    slopes = [gradient(estimate(step), student, teacher) for step in range(steps)]
    assert len(set(values)) == steps, "every step uses different anchors"
    expected = float(triplet_relation_loss(student, teacher, anchors=anchors))
    assert sum(values) / steps == pytest.approx(expected, rel=1e-12)
    whole = gradient(lambda s, t: triplet_relation_loss(s, t, anchors=anchors), student, teacher)
    torch.testing.assert_close(torch.stack(slopes).mean(0), whole)
    assert float(estimate(steps + 1)(student, teacher)) == values[1 % steps], "steps are taken modulo their number"


def test_triplet_estimate_equals_definition() -> None:
    student, teacher = embeddings(7, 5, 26, torch.float64), embeddings(7, 5, 27, torch.float64)

    def cosine(e: Tensor, i: int, j: int, k: int) -> Tensor:
        return F.cosine_similarity(e[j] - e[i], e[k] - e[i], dim=0)

    def at(anchors: list[int]) -> float:
        triples = [(i, j, k) for i in anchors for j in range(7) for k in range(7) if len({i, j, k}) == 3]
        return sum(float(oracles.huber(cosine(student, *t) - cosine(teacher, *t))) for t in triples) / (7 * 6 * 5)

    found = [float(triplet_relation_loss(student, teacher, max_anchors=3, step=step)) for step in range(3)]
    assert found == pytest.approx([3 * at([0, 3, 6]), 3 * at([1, 4]), 3 * at([2, 5])], rel=1e-12)
    assert float(triplet_relation_loss(student, teacher, max_anchors=3)) == found[0]


@pytest.mark.parametrize("loss", [pair_relation_loss, triplet_relation_loss, instance_relation_loss])
def test_teacher_gets_no_gradient(loss: Loss) -> None:
    student, teacher = embeddings(5, 4, 30).requires_grad_(), embeddings(5, 4, 31).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.any()


@LOSSES
def test_relation_bad_shapes(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(5, 8\)"):
        loss(embeddings(4, 8, 0), embeddings(5, 8, 0))
    with pytest.raises(ValueError, match=r"\(4, 8, 1\)"):
        loss(embeddings(4, 8, 0)[..., None], embeddings(4, 8, 0))

    with pytest.raises(ValueError, match="max_anchors must be a positive number of anchors or None, got 0"):
        triplet_relation_loss(embeddings(4, 8, 0), embeddings(4, 8, 0), max_anchors=0)


def test_instance_known_values() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(instance_relation_loss(student, teacher)) == pytest.approx((2 + 4) / 2)
    assert float(instance_relation_loss(teacher, teacher)) == 0
    target, centers = torch.tensor([[math.sqrt(0.1), math.sqrt(0.9)]]), torch.tensor([[1.0, 0.0]])
    assert float(instance_relation_loss(target, teacher[:1], centers, 0.25)) == pytest.approx(0, abs=1e-12)


def test_instance_soft_definition() -> None:
    student, teacher, centers = (embeddings(4, 3, seed, torch.float64) for seed in (32, 33, 34))
    expected = (student - F.normalize(0.75 * teacher + 0.25 * centers)).square().sum(1).mean()
    torch.testing.assert_close(instance_relation_loss(student, teacher, centers.float(), 0.25), expected)
    only_centre = instance_relation_loss(student, teacher, centers, beta=1.0)
    torch.testing.assert_close(only_centre, instance_relation_loss(student, centers))
    assert torch.autograd.gradcheck(
        lambda s: instance_relation_loss(s, teacher, centers, 0.5), student.requires_grad_()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.5}, "needs the identity centres"),
        ({"beta": 1.5}, r"\[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"\[0, 1\], got -0.1"),
        ({"beta": 0.5, "centers": torch.zeros(7, 3)}, r"\(4, 3\), got \(7, 3\)"),
        ({"teacher": torch.zeros(4, 2)}, r"\(4, 3\) and \(4, 2\)"),
    ],
)
def test_instance_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given = {"student": torch.zeros(4, 3), "teacher": torch.zeros(4, 3), **arguments}
    with pytest.raises(ValueError, match=message):
        instance_relation_loss(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1.0), (16.0, 4.0)])
def test_prediction_equals_oracle(scale: float, temperature: float) -> None:
    student, teacher, centers = embeddings(5, 4, 38), embeddings(5, 4, 39), embeddings(3, 4, 40)

    def loss(student: Tensor, teacher: Tensor) -> float:
        return float(prediction_relation_loss(student, teacher, centers, scale, temperature))

    expected = oracles.prediction_relation(student, teacher, centers, scale, temperature)
    assert loss(student, teacher) == pytest.approx(expected, rel=1e-5)
    assert loss(teacher, teacher) == pytest.approx(0, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, teacher) == pytest.approx(expected, rel=1e-5)


def test_prediction_of_half_precision() -> None:
    student, teacher, centers = embeddings(5, 4, 38).bfloat16(), embeddings(5, 4, 39).bfloat16(), embeddings(3, 4, 40)
    found = prediction_relation_loss(student, teacher, centers, 16.0, 2.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, prediction_relation_loss(student.float(), teacher.float(), centers, 16.0, 2.0))


def test_prediction_bad_arguments() -> None:
    student, centers = embeddings(5, 4, 41), embeddings(3, 4, 42)
    with pytest.raises(ValueError, match=r"\(K, 4\), got \(3, 2\)"):
        prediction_relation_loss(student, student, centers[:, :2], 1.0, 1.0)
    with pytest.raises(ValueError, match=r"of one shape, got \(5, 4\) and \(5, 3\)"):
        prediction_relation_loss(student, student[:, :3], centers[:, :3], 1.0, 1.0)
    for scale, temperature, name in ((1.0, 0.0, "temperature"), (0.0, 1.0, "scale")):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            prediction_relation_loss(student, student, centers, scale, temperature)
