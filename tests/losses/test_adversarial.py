"""The adversarial losses on hand-made logits, and the gradient penalty on discriminators whose slope is known."""

import pytest
import torch
from torch import Tensor, nn

from deocc.losses import DiscriminatorLoss, GeneratorLoss, discriminator_loss, generator_loss, gradient_penalty

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def places(number: int, seed: int) -> torch.Tensor:
    """(number,), where between completed and clean faces."""
    return torch.rand(number, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "expected"), [("hinge", (0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3), ("wgan", -2 / 3 - 1.5 / 3)]
)
def test_the_discriminator_loss_has_its_hand_made_value(kind: str, expected: float) -> None:
    assert float(discriminator_loss(REAL, FAKE, kind)) == pytest.approx(expected)
    assert torch.equal(DiscriminatorLoss(kind)(REAL, FAKE), discriminator_loss(REAL, FAKE, kind))


@pytest.mark.parametrize("kind", ["hinge", "wgan"])
def test_the_generator_is_paid_for_logits_that_rise(kind: str) -> None:
    fake = FAKE.clone().requires_grad_()
    assert float(GeneratorLoss(kind)(FAKE)) == pytest.approx(2 / 3)
    (slope,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    torch.testing.assert_close(slope, torch.full((3,), -1 / 3))


def test_under_hinge_logits_beyond_the_margin_teach_the_discriminator_nothing() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    real_slope, fake_slope = torch.autograd.grad(discriminator_loss(real, fake, "hinge"), (real, fake))
    torch.testing.assert_close(real_slope, torch.tensor([0.0, -1 / 3, -1 / 3]))
    torch.testing.assert_close(fake_slope, torch.tensor([0.0, 1 / 3, 1 / 3]))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    assert generator_loss(logits, "hinge").dtype == torch.float32
    assert float(generator_loss(logits, "hinge")) == pytest.approx(-float(logits[0]), rel=1e-6)


@pytest.mark.parametrize("length", [0.0, 1.0, 3.0])
def test_a_linear_discriminator_pays_its_slopes_distance_from_one(length: float) -> None:
    direction = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = (length * direction / direction.norm()).requires_grad_()
    real, fake = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    penalty = gradient_penalty(lambda image: image.flatten(1) @ weight.flatten(), real, fake, places(5, 2))
    # A float32 norm of 48 numbers, squared: some tens of units in the last place.
    assert float(penalty.detach()) == pytest.approx((length - 1) ** 2, rel=1e-5, abs=1e-6)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert slope.isfinite().all()
    assert float((slope * direction).sum() / direction.norm()) == pytest.approx(
        2 * (length - 1) if length else 0, abs=1e-5
    )


def test_the_penalty_looks_between_the_faces_and_each_image_at_its_own_place() -> None:
    seen: list[Tensor] = []

    def discriminator(image: Tensor) -> Tensor:
        seen.append(image.detach())
        return image.sum((1, 2, 3))

    gradient_penalty(discriminator, torch.ones(64, 1, 2, 2), torch.zeros(64, 1, 2, 2), places(64, 3))
    share = seen[0].flatten(1)
    assert torch.equal(share, share[:, :1].expand_as(share))
    assert share.min() >= 0
    assert share.max() <= 1
    assert len(share[:, 0].unique()) == 64


def test_a_completed_face_in_half_precision_and_no_generator_are_taken() -> None:
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)
    real, fake = torch.zeros(3, 2, 1, 1, dtype=torch.float64), torch.ones(3, 2, 1, 1, dtype=torch.bfloat16)
    penalty = gradient_penalty(lambda image: image.flatten(1) @ direction, real, fake)
    assert penalty.dtype == torch.float64
    assert float(penalty) == pytest.approx((5 - 1) ** 2)


def test_the_same_places_give_the_same_penalty() -> None:
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    first, again, other = (gradient_penalty(discriminator, real, fake, places(4, seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_penalty_reaches_the_discriminator_but_no_face_and_ignores_autocast() -> None:
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2, requires_grad=True)
    penalty = gradient_penalty(discriminator, real, fake, places(4, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient_penalty(discriminator, real, fake, places(4, 7)), penalty)
    penalty.backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in discriminator[1].parameters() if parameter.ndim > 1)


def test_hinge_is_taken_unless_another_is_asked_for() -> None:
    assert torch.equal(DiscriminatorLoss()(REAL, FAKE), discriminator_loss(REAL, FAKE, "hinge"))
    assert GeneratorLoss().kind == "hinge"


def test_unknown_kinds_and_unequal_shapes_are_refused() -> None:
    for build in (DiscriminatorLoss, GeneratorLoss):
        with pytest.raises(ValueError, match="'lsgan': choose one of hinge, wgan"):
            build("lsgan")
    with pytest.raises(ValueError, match="choose one of hinge, wgan"):
        discriminator_loss(REAL, FAKE, "Hinge")
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) and \(2, 3, 4, 4\)"):
        gradient_penalty(torch.sum, torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
