"""Layers against slow oracles; properties that all inpainting networks share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from deocc.networks.discriminator import GlobalLocalDiscriminator, PatchDiscriminator
from deocc.networks.generator import Generator
from deocc.networks.layers import GatedConv2d, VisibleAttention, gaussian_blur, noisy_mask
from deocc.networks.segmenter import MaskSegmenter
from tests.networks.images import box_mask, random_faces

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "generator": lambda: Generator(8),
    "generator_without_attention": lambda: Generator(8, depth=1, attention=False),
    "patch_discriminator": lambda: PatchDiscriminator(8),
    "global_local_discriminator": lambda: GlobalLocalDiscriminator(8),
    "segmenter": lambda: MaskSegmenter(8),
}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def run(network: nn.Module, face: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the outputs of any of the networks."""
    out = network(face) if isinstance(network, MaskSegmenter) else network(face, mask)
    return out if isinstance(out, list) else [out]


def test_gradient_reaches_every_parameter(network: nn.Module) -> None:
    face = random_faces()
    outputs = run(network, face, box_mask(face, 4, 6, 20, 22))
    torch.stack([(out * torch.randn_like(out)).sum() for out in outputs]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_image_independent_of_batch(network: nn.Module) -> None:
    network.eval()  # spectral normalisation refines its estimate at every training step
    face = random_faces(3)
    mask = torch.cat([box_mask(face[:1], 4, 6, 20, 22), box_mask(face[:1], 30, 2, 34, 9), torch.zeros(1, 1, 40, 40)])
    for together, alone in zip(run(network, face, mask), run(network, face[1:2], mask[1:2]), strict=True):
        assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("network", [Generator(8), Generator(8, depth=1, attention=False), MaskSegmenter(12)])
def test_config_rebuilds_network(network: Generator | MaskSegmenter) -> None:
    rebuilt = type(network)(**network.config)  # type: ignore[arg-type]
    rebuilt.load_state_dict(network.state_dict())


def test_gated_layer_preserves_mean_square() -> None:
    out = GatedConv2d(64, 64)(torch.randn(4, 64, 24, 24))
    assert 0.7 < out.square().mean() < 1.4


def test_attention_equals_weighted_sum() -> None:
    attention, features = VisibleAttention(8), torch.randn(2, 8, 6, 4)
    mask = torch.zeros(2, 1, 24, 16)
    mask[:, :, 9:20, 3:7] = 1
    weights, found = attention.weights(features, mask), attention(features, mask)
    for query in range(6):
        expected = torch.zeros(2, 8, 2, 2)
        for key in range(6):
            y, x = 2 * (key // 2), 2 * (key % 2)
            expected += weights[:, query, key, None, None, None] * features[:, :, y : y + 2, x : x + 2]
        y, x = 2 * (query // 2), 2 * (query % 2)
        assert torch.allclose(found[:, :, y : y + 2, x : x + 2], expected, atol=1e-5)


def test_attention_prefers_similar_patch() -> None:
    attention = VisibleAttention(4)
    features = torch.randn(1, 4, 2, 2).repeat(1, 1, 4, 4)
    features[:, :, :, 4:] = -features[:, :, :, 4:]
    weights = attention.weights(features, torch.zeros(1, 1, 8, 8))[0].reshape(4, 4, 4, 4)
    assert weights[1, 1, :, :2].sum() > weights[1, 1, :, 2:].sum()
    assert weights[1, 3, :, :2].sum() < weights[1, 3, :, 2:].sum()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7])
def test_gaussian_blur_equals_scipy(sigma: float) -> None:
    face = random_faces(2, 20, 17)
    truncate = max(1, round(3 * sigma)) / sigma
    expected = ndimage.gaussian_filter(face.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=truncate)
    np.testing.assert_allclose(gaussian_blur(face, sigma).numpy(), expected, rtol=0, atol=1e-5)
    assert torch.equal(gaussian_blur(face, 0), face)


def test_noisy_mask_follows_seed() -> None:
    mask = box_mask(torch.zeros(8, 3, 16, 16), 0, 5, 9, 12)
    seed = torch.tensor([3, 0, 1, 2, 7, 4, 2**40 + 1, 6])
    noisy, square = noisy_mask(mask, seed), np.ones((3, 3), bool)
    covered = mask[0, 0].numpy() > 0
    eroded = ndimage.binary_erosion(covered, square, border_value=1)
    by_seed = [eroded, covered, *(ndimage.binary_dilation(covered, square, steps) for steps in (1, 2))]
    for number, value in enumerate(seed.tolist()):
        assert np.array_equal(noisy[number, 0].numpy() > 0, by_seed[value % 4]), number
    assert torch.equal(noisy_mask(mask[3:4], seed[3:4])[0], noisy[3])
    assert not noisy_mask(torch.zeros(4, 1, 8, 8), torch.arange(4)).any()


NO_MASK = torch.zeros(2, 1, 40, 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator(6), "multiple of 4"),
        (lambda: Generator(8, depth=0), "depth"),
        (lambda: Generator(8)(random_faces()[:, :1], NO_MASK), "H and W of at least 16"),
        (lambda: Generator(8)(random_faces(1, 12, 40), torch.zeros(1, 1, 12, 40)), "at least 16"),
        (lambda: Generator(8)(random_faces(2), NO_MASK[:1]), "expected a mask of shape"),
        (lambda: Generator(8, attention=False).attend(random_faces(), NO_MASK), "attention=True"),
        (lambda: GlobalLocalDiscriminator(8)(random_faces(), NO_MASK[:, 0]), "expected a mask of shape"),
        (lambda: PatchDiscriminator(8)(random_faces(1, 12, 40), torch.zeros(1, 1, 12, 40)), "at least 16"),
        (lambda: MaskSegmenter(8)(torch.zeros(3, 40, 40)), "expected faces"),
    ],
)
def test_network_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
