"""Adversarial losses on known logits; gradient penalty of discriminators with known gradients."""

import pytest
import torch
from torch import Tensor, nn

from deocc.losses import discriminator_loss, generator_loss, gradient_penalty

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def shares(count: int, seed: int) -> Tensor:
    """Interpolation weights (count,)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "expected"), [("hinge", (0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3), ("wgan", -2 / 3 - 1.5 / 3)]
)
def test_discriminator_loss_value(kind: str, expected: float) -> None:
    assert float(discriminator_loss(REAL, FAKE, kind)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["hinge", "wgan"])
def test_generator_loss_value_and_gradient(kind: str) -> None:
    fake = FAKE.clone().requires_grad_()
    loss = generator_loss(fake, kind)
    assert float(loss.detach()) == pytest.approx(2 / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, fake)[0], torch.full((3,), -1 / 3))


def test_hinge_no_gradient_beyond_margin() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    gradients = torch.autograd.grad(discriminator_loss(real, fake, "hinge"), (real, fake))
    torch.testing.assert_close(gradients[0], torch.tensor([0.0, -1 / 3, -1 / 3]))
    torch.testing.assert_close(gradients[1], torch.tensor([0.0, 1 / 3, 1 / 3]))


def test_half_precision_logits_sum_in_float32() -> None:
    logits = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    assert generator_loss(logits, "hinge").dtype == torch.float32
    assert float(generator_loss(logits, "hinge")) == pytest.approx(-float(logits[0]), rel=1e-6)


@pytest.mark.parametrize("norm", [0.0, 1.0, 3.0])
def test_penalty_of_linear_discriminator(norm: float) -> None:
    direction = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = (norm * direction / direction.norm()).requires_grad_()
    real, fake = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    penalty = gradient_penalty(lambda image: image.flatten(1) @ weight.flatten(), real, fake, shares(5, 2))
    assert float(penalty.detach()) == pytest.approx((norm - 1) ** 2, rel=1e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.isfinite().all()
    along = float((gradient * direction).sum() / direction.norm())
    assert along == pytest.approx(2 * (norm - 1) if norm else 0, abs=1e-5)


def test_penalty_interpolates_per_image() -> None:
    seen: list[Tensor] = []

    def discriminator(image: Tensor) -> Tensor:
        seen.append(image.detach())
        return image.sum((1, 2, 3))

    gradient_penalty(discriminator, torch.ones(64, 1, 2, 2), torch.zeros(64, 1, 2, 2), shares(64, 3))
    torch.testing.assert_close(seen[0].flatten(1), shares(64, 3)[:, None].expand(64, 4))


def test_penalty_of_mixed_dtypes() -> None:
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)
    real, fake = torch.zeros(3, 2, 1, 1, dtype=torch.float64), torch.ones(3, 2, 1, 1, dtype=torch.bfloat16)
    penalty = gradient_penalty(lambda image: image.flatten(1) @ direction, real, fake, shares(3, 4))
    assert penalty.dtype == torch.float64
    assert float(penalty) == pytest.approx((5 - 1) ** 2)


def test_penalty_gradient_seed_and_autocast() -> None:
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2, requires_grad=True)
    penalty = gradient_penalty(discriminator, real, fake, shares(4, 7))
    assert not torch.equal(gradient_penalty(discriminator, real, fake, shares(4, 8)), penalty)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient_penalty(discriminator, real, fake, shares(4, 7)), penalty)
    penalty.backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in discriminator[1].parameters() if parameter.ndim > 1)


def test_adversarial_bad_input() -> None:
    with pytest.raises(ValueError, match="'lsgan': choose one of hinge, wgan"):
        generator_loss(FAKE, "lsgan")
    with pytest.raises(ValueError, match="choose one of hinge, wgan"):
        discriminator_loss(REAL, FAKE, "Hinge")
    one, two = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\), \(2, 3, 4, 4\), \(1,\)"):
        gradient_penalty(torch.sum, one, two, torch.zeros(1))
    with pytest.raises(ValueError, match=r"shares \(B,\), got .*, \(1,\)"):
        gradient_penalty(torch.sum, two, two, torch.zeros(1))
