"""Margins against their definition by the angle, their behaviour at both ends of the cosine, and the classifier."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.losses import IdentityLoss, identity_loss, margin_logits
from tests import oracles

MARGINS = pytest.mark.parametrize(
    ("margin_type", "margin"), [("softmax", 0.0), ("cosface", 0.35), ("arcface", 0.5), ("arcface", 1.2)]
)


def cosines(count: int, identities: int, seed: int) -> Tensor:
    return 2 * torch.rand(count, identities, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


@MARGINS
def test_identity_loss_equals_oracle(margin_type: str, margin: float) -> None:
    cosine, identity = cosines(40, 6, 0), [n % 6 for n in range(40)]
    found = identity_loss(cosine, torch.tensor(identity), margin_type, margin, scale=8.0)
    assert float(found) == pytest.approx(oracles.identity_loss(cosine, identity, margin_type, margin, 8.0), rel=1e-6)
    inner = (0.9 * cosines(6, 4, 2)).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.autograd.gradcheck(lambda c: identity_loss(c, targets, margin_type, margin, 4.0), inner)


@MARGINS
def test_margin_changes_true_identity_only(margin_type: str, margin: float) -> None:
    cosine, identity = cosines(5, 4, 1), torch.tensor([0, 3, 2, 1, 1])
    logits = margin_logits(cosine, identity, margin_type, margin)
    others = F.one_hot(identity, 4) == 0
    assert torch.equal(logits[others], cosine[others])
    expected = [oracles.margin_cosine(float(c), margin_type, margin) for c in cosine[~others]]
    torch.testing.assert_close(logits[~others], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_arcface_decreases_beyond_pi(margin: float) -> None:
    cosine = torch.linspace(0, math.pi, 20_001, dtype=torch.float64).cos()[:, None]
    own = margin_logits(cosine, torch.zeros(len(cosine), dtype=torch.long), "arcface", margin)[:, 0]
    assert (own.diff() < 0).all()


@MARGINS
def test_margin_gradient_bounded_at_ends(margin_type: str, margin: float) -> None:
    cosine = torch.tensor([[1.0], [-1.0], [1 + 1e-6], [-1 - 1e-6], [1 - 1e-7], [-1 + 1e-7]], requires_grad=True)
    logits = margin_logits(cosine, torch.zeros(6, dtype=torch.long), margin_type, margin)
    (slope,) = torch.autograd.grad(logits.sum(), cosine)
    assert logits.isfinite().all()
    assert slope.abs().max() < 5e3


@MARGINS
def test_mixture_weights_losses_of_identities(margin_type: str, margin: float) -> None:
    cosine, identity = cosines(3, 5, 4), torch.tensor([[0, 1], [4, 4], [2, 0]])
    share = torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        for t in range(2):
            alone = oracles.identity_loss(cosine[[i]], [int(identity[i, t])], margin_type, margin, 8.0)
            expected += float(share[i, t]) * alone / 3
    assert float(identity_loss(cosine, identity, margin_type, margin, 8.0, share)) == pytest.approx(expected, rel=1e-6)


def test_identity_loss_defaults() -> None:
    cosine, identity = cosines(6, 4, 5), torch.tensor([0, 1, 2, 3, 3, 0])
    expected = F.cross_entropy(64 * cosine, identity)
    torch.testing.assert_close(identity_loss(cosine, identity), expected)
    torch.testing.assert_close(identity_loss(cosine, identity, "cosface"), expected)
    head = IdentityLoss(4, 8)
    assert (head.margin_type, head.margin, head.scale) == ("softmax", 0.0, 64.0)
    assert float(IdentityLoss(1, 1)(torch.ones(2, 1), torch.tensor([0, 0])).detach()) == 0


def test_classifier_ignores_norms_and_autocast() -> None:
    torch.manual_seed(0)
    loss, embedding, identity = IdentityLoss(5, 8, "arcface", 0.5, 16.0), torch.randn(6, 8), torch.arange(6) % 5
    value = loss(embedding, identity)
    torch.testing.assert_close(loss(10 * embedding, identity), value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(embedding, identity), value)
    with torch.no_grad():
        loss.weight.mul_(3)
    torch.testing.assert_close(loss(embedding, identity), value)


def test_classifier_cosine() -> None:
    head, embedding = IdentityLoss(5, 8), torch.randn(3, 8, generator=torch.Generator().manual_seed(6))
    expected = F.cosine_similarity(embedding[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head.cosine(embedding), expected)
    half = embedding.bfloat16()
    assert torch.equal(head.cosine(half), head.cosine(half.float()))


def test_classifier_starts_from_centres() -> None:
    loss, centers = IdentityLoss(6, 16, scale=64.0), torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    loss.initialise(centers)
    torch.testing.assert_close(loss.cosine(centers).diagonal(), torch.ones(6))
    assert float(loss(centers, torch.arange(6)).detach()) < 1e-3
    assert loss.weight.requires_grad
    assert loss.weight.data_ptr() != centers.data_ptr()


def test_classifier_and_embedding_get_gradients() -> None:
    loss, embedding = IdentityLoss(3, 4), torch.ones(2, 4, requires_grad=True)
    loss(embedding, torch.tensor([0, 2])).backward()
    assert embedding.grad is not None and embedding.grad.any()
    assert loss.weight.grad is not None and loss.weight.grad.any()


def test_identity_bad_input() -> None:
    long = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="'sphereface': choose one of softmax, cosface, arcface"):
        IdentityLoss(3, 4, "sphereface")
    with pytest.raises(ValueError, match="choose one of"):
        margin_logits(torch.zeros(1, 2), torch.tensor([0]), "triplet", 0.0)
    with pytest.raises(ValueError, match=r"arcface needs a margin in \[0, 1.571\), got 2"):
        IdentityLoss(3, 4, "arcface", 2.0)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        IdentityLoss(3, 4, scale=0.0)
    with pytest.raises(ValueError, match="num_identities must be positive, got 0"):
        IdentityLoss(0, 4)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(4,\)"):
        margin_logits(torch.zeros(2, 3), long, "softmax", 0.0)
    with pytest.raises(ValueError, match=r"\(3, 4\), got \(3, 5\)"):
        IdentityLoss(3, 4).initialise(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"one shape \(B, T\), got \(2, 2\) and \(2, 3\)"):
        identity_loss(torch.zeros(2, 4), long.view(2, 2), share=torch.zeros(2, 3))
