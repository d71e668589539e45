"""Generator, discriminators and segmenter against slow oracles and known answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.discriminator import LOCAL_MARGIN, GlobalLocalDiscriminator, PatchDiscriminator, crop_to_mask
from deocc.networks.generator import Generator, complete
from deocc.networks.layers import GatedConv2d, VisibleAttention, pad_to_multiple
from deocc.networks.segmenter import MaskSegmenter, load_segmenter, predicted_share

NETWORKS = {
    "generator": lambda: Generator(8),
    "generator_without_attention": lambda: Generator(8, depth=1, attention=False),
    "patch_discriminator": lambda: PatchDiscriminator(8),
    "global_local_discriminator": lambda: GlobalLocalDiscriminator(8, spectral_norm=False),
    "segmenter": lambda: MaskSegmenter(8),
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest, _seed: None) -> nn.Module:
    built: nn.Module = request.param()
    return built


def _faces(batch: int = 2, height: int = 40, width: int = 40) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def _box_mask(face: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Covers columns left..right-1 of rows top..bottom-1."""
    mask = torch.zeros_like(face[:, :1])
    mask[:, :, top:bottom, left:right] = 1
    return mask


def _call(network: nn.Module, face: Tensor, mask: Tensor) -> list[Tensor]:
    """A network's outputs, whatever its signature."""
    out = network(face) if isinstance(network, MaskSegmenter) else network(face, mask)
    return out if isinstance(out, list) else [out]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 48), (37, 51), (112, 112)])
def test_generator_and_segmenter_keep_any_size_and_the_range(height: int, width: int) -> None:
    face = _faces(1, height, width)
    mask = _box_mask(face, 4, 6, 13, 15)
    generated = Generator(8)(face, mask)
    assert generated.shape == face.shape
    assert generated.abs().max() <= 1
    assert MaskSegmenter(8)(face).shape == mask.shape


def test_an_odd_size_is_reflected_at_the_right_and_lower_border_and_cropped_again() -> None:
    generator, segmenter, face = Generator(8).eval(), MaskSegmenter(8).eval(), _faces(1, 37, 51)
    mask = _box_mask(face, 5, 9, 30, 33)
    padded_face, padded_mask = (
        F.pad(image, (0, 5, 0, 3), mode="reflect") for image in (face, mask)
    )  # to multiples of 8
    assert torch.equal(generator(face, mask), generator(padded_face, padded_mask)[..., :37, :51])
    assert torch.equal(segmenter(face), segmenter(F.pad(face, (0, 13, 0, 11), mode="reflect"))[..., :37, :51])  # of 16


def test_generated_range_holds_when_the_last_layer_is_extreme() -> None:
    generator, face = Generator(8), _faces()
    nn.init.constant_(generator.to_image.weight, 50.0)
    assert generator(face, _box_mask(face, 4, 6, 30, 30)).abs().max() <= 1


def test_visible_pixels_are_pasted_back_exactly_and_covered_ones_are_generated() -> None:
    generator, face = Generator(8).eval(), _faces(2, 37, 51)
    mask = _box_mask(face, 5, 9, 30, 33)
    completed = complete(generator, face, mask)
    expected = torch.where(mask.bool(), generator(face, mask), face)
    assert torch.equal(completed, expected)
    assert not torch.equal(completed, face)


@pytest.mark.parametrize("size", [40, 37])
def test_generator_never_sees_what_lies_under_the_mask(size: int) -> None:
    generator, face = Generator(8).eval(), _faces(2, size, size)
    mask = _box_mask(face, 5, 9, size, size)
    other = torch.where(mask.bool(), _faces(2, size, size), face)
    assert not torch.equal(face, other)
    assert torch.equal(generator(face, mask), generator(other, mask))
    assert not torch.equal(generator(face, mask), generator(-face, mask))


@pytest.mark.parametrize(("box", "size"), [((5, 9, 30, 33), 40), ((8, 8, 9, 9), 40), ((20, 3, 37, 20), 37)])
def test_attention_draws_on_exactly_the_wholly_visible_patches(box: tuple[int, int, int, int], size: int) -> None:
    face = _faces(2, size, size)
    mask = _box_mask(face, *box)
    attention = Generator(8).attend(face, mask)
    assert attention.shape == (2, 5, 5, 5, 5)
    assert torch.allclose(attention.sum((3, 4)), torch.ones(2, 5, 5))
    padded = pad_to_multiple(mask, 8)
    for row in range(5):
        for column in range(5):
            covered = bool(padded[0, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].any())
            drawn = attention[:, :, :, row, column]
            assert bool((drawn == 0).all()) if covered else bool((drawn > 0).all())


def test_attention_output_equals_a_patch_by_patch_weighted_sum() -> None:
    attention, features = VisibleAttention(8), torch.randn(2, 8, 6, 4)
    mask = torch.zeros(2, 1, 24, 16)
    mask[:, :, 9:20, 3:7] = 1
    weights, drawn = attention.weights(features, mask), attention(features, mask)
    for query in range(6):
        expected = torch.zeros(2, 8, 2, 2)
        for key in range(6):
            y, x = 2 * (key // 2), 2 * (key % 2)
            expected += weights[:, query, key, None, None, None] * features[:, :, y : y + 2, x : x + 2]
        y, x = 2 * (query // 2), 2 * (query % 2)
        assert torch.allclose(drawn[:, :, y : y + 2, x : x + 2], expected, atol=1e-5)


def test_attention_prefers_the_patch_that_is_alike() -> None:
    attention = VisibleAttention(4)
    features = torch.randn(1, 4, 2, 2).repeat(1, 1, 4, 4)
    features[:, :, :, 4:] = -features[:, :, :, 4:]
    weights = attention.weights(features, torch.zeros(1, 1, 8, 8))[0].reshape(4, 4, 4, 4)
    assert weights[1, 1, :, :2].sum() > weights[1, 1, :, 2:].sum()
    assert weights[1, 3, :, :2].sum() < weights[1, 3, :, 2:].sum()


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_nothing_and_everything_covered_give_finite_outputs_and_gradients(covered: float) -> None:
    face = _faces()
    mask = torch.full_like(face[:, :1], covered)
    generator, discriminator = Generator(8), GlobalLocalDiscriminator(8)
    completed = complete(generator, face, mask)
    loss = completed.square().mean() + sum(logits.mean() for logits in discriminator(completed, mask))
    loss.backward()
    assert bool(completed.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in generator.parameters() if p.grad is not None)
    assert bool((generator.attend(face, mask).sum((3, 4)) - (1 - covered)).abs().max() < 1e-5)


def test_gradient_reaches_every_parameter(network: nn.Module) -> None:
    face = _faces()
    sum((out * torch.randn_like(out)).sum() for out in _call(network, face, _box_mask(face, 4, 6, 20, 22))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_an_image_is_treated_alike_alone_and_in_a_batch(network: nn.Module) -> None:
    network.eval()  # spectral normalisation refines its estimate at every training step
    face = _faces(3)
    mask = torch.cat([_box_mask(face[:1], 4, 6, 20, 22), _box_mask(face[:1], 30, 2, 34, 9), torch.zeros(1, 1, 40, 40)])
    for together, alone in zip(_call(network, face, mask), _call(network, face[1:2], mask[1:2]), strict=True):
        assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_config_rebuilds_the_network(network: nn.Module) -> None:
    twin = type(network)(**network.config)
    assert {name: value.shape for name, value in twin.state_dict().items()} == {
        n: v.shape for n, v in network.state_dict().items()
    }


def test_a_gated_layer_of_random_weights_keeps_the_mean_square() -> None:
    out = GatedConv2d(64, 64)(torch.randn(4, 64, 24, 24))
    assert 0.7 < out.square().mean() < 1.4


@pytest.mark.parametrize(
    ("box", "left", "top", "side"),
    [
        ((20, 24, 36, 40), 18, 22, 20),  # a square in the middle grows around its centre
        ((20, 24, 28, 40), 14, 22, 20),  # a tall box becomes a square
        ((0, 0, 16, 16), 0, 0, 20),  # at the border the crop moves inwards
        ((44, 48, 64, 64), 39, 39, 25),
        ((30, 30, 32, 32), 23, 23, 16),  # a speck still gets a quarter of the side
        ((2, 3, 62, 63), 0, 0, 64),  # never larger than the image
        ((0, 0, 0, 0), 0, 0, 64),  # no mask: the whole image
    ],
)
def test_local_crop_lies_where_the_mask_is(box: tuple[int, int, int, int], left: int, top: int, side: int) -> None:
    assert LOCAL_MARGIN == 1.25  # the known answers below stand on it
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([columns, rows])[None]
    crop = crop_to_mask(image, _box_mask(image, *box), 32)
    centres = (torch.arange(32) + 0.5) * side / 32 - 0.5
    assert torch.allclose(crop[0, 0, 16], (left + centres).clamp(0, 63), atol=1e-3)
    assert torch.allclose(crop[0, 1, :, 16], (top + centres).clamp(0, 63), atol=1e-3)


def test_local_crop_of_an_oblong_image_keeps_its_proportions_and_the_whole_mask() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([columns, rows])[None]
    crop = crop_to_mask(image, _box_mask(image, 10, 0, 50, 32), 50)  # the side is 40 * 1.25 = 50
    assert torch.allclose(crop[0, 0, 25], torch.arange(5.0, 55.0), atol=1e-3)
    assert crop[0, 1].min() == 0
    assert crop[0, 1].max() == 31


def test_local_logits_depend_on_the_surroundings_of_the_mask_alone() -> None:
    face = _faces(1, 64, 64).requires_grad_()
    mask = _box_mask(face.detach(), 20, 24, 36, 40)
    _, local = GlobalLocalDiscriminator(8)(face, mask)
    gradient = torch.autograd.grad(local.sum(), face)[0].abs().sum((0, 1))
    assert gradient[24:40, 20:36].min() > 0
    gradient[21:43, 17:39] = 0  # the crop and the rim that bilinear sampling adds
    assert gradient.max() == 0


def test_discriminator_is_trained_on_real_and_fake_faces_in_one_step() -> None:
    discriminator, real = GlobalLocalDiscriminator(8), _faces()
    mask = _box_mask(real, 4, 6, 20, 22)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.5, 0.99))
    for _ in range(20):
        fake = torch.where(mask.bool(), torch.zeros_like(real), real)
        margins = [
            r.mean() - f.mean() for r, f in zip(discriminator(real, mask), discriminator(fake, mask), strict=True)
        ]
        optimizer.zero_grad()
        sum(F.softplus(-margin) for margin in margins).backward()
        optimizer.step()
    assert all(margin > 0.1 for margin in margins)


def test_segmenter_overfits_a_tiny_batch() -> None:
    face = _faces(2, 32, 32) * 0.3
    mask = torch.cat([_box_mask(face[:1], 4, 6, 20, 22), _box_mask(face[:1], 12, 16, 32, 32)])
    masked_face = torch.where(mask.bool(), 0.8, face)
    segmenter = MaskSegmenter(8)
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(segmenter(masked_face), mask).backward()
        optimizer.step()
    wrong = ((segmenter.predict_mask(masked_face, dilation=0) > 0.5) != mask).float().mean()
    assert wrong < 0.02


def _segmenter_of(logits: Tensor) -> MaskSegmenter:
    """A segmenter that gives these logits whatever the face."""
    segmenter = MaskSegmenter(8)
    segmenter.forward = lambda _: logits  # type: ignore[method-assign,assignment]
    return segmenter


def test_predicted_mask_holds_confidences_that_the_dilation_spreads() -> None:
    logits = torch.full((1, 1, 20, 20), -1.0)
    logits[0, 0, 10, 0] = 1.0
    segmenter, face = _segmenter_of(logits), _faces(1, 20, 20)
    assert torch.equal(segmenter.predict_mask(face, dilation=0), logits.sigmoid())
    grown = _box_mask(face, 0, 8, 3, 13).bool()
    assert torch.equal(
        segmenter.predict_mask(face, dilation=2), torch.where(grown, logits.max().sigmoid(), logits.min().sigmoid())
    )
    assert torch.equal(segmenter.predict_mask(face), segmenter.predict_mask(face, dilation=1))


def test_predict_mask_drops_low_confidences() -> None:
    confidence = torch.linspace(0.01, 0.99, 400).view(1, 1, 20, 20)
    mask = _segmenter_of(confidence.logit()).predict_mask(_faces(1, 20, 20), dilation=0)
    low = confidence < 0.1
    assert low.any() and bool((mask[low] == 0).all())
    torch.testing.assert_close(mask[~low], confidence[~low])


def test_calibrate_gate_lets_few_bare_faces_pass() -> None:
    shares = torch.arange(1000)[torch.randperm(1000)] / 1000
    for false_alarms in (0.0, 0.005, 0.1):
        segmenter = MaskSegmenter(8)
        segmenter.calibrate_gate(shares, false_alarms)
        assert int((shares >= segmenter.gate).sum()) == round(false_alarms * 1000)
    segmenter.calibrate_gate(torch.zeros(10))
    assert segmenter.gate > 0  # a face of no covered pixel is bare
    with pytest.raises(ValueError, match="no bare faces"):
        segmenter.calibrate_gate(torch.zeros(0))


def test_predict_mask_is_empty_below_the_gate() -> None:
    logits = torch.full((2, 1, 20, 20), -1.0)
    logits[0, 0, :4], logits[1, 0, :6] = 2.0, 2.0
    segmenter, face = _segmenter_of(logits), _faces(2, 20, 20)
    assert predicted_share(logits.sigmoid()).tolist() == pytest.approx([0.2, 0.3])
    segmenter.gate.fill_(0.25)
    below, above = segmenter.predict_mask(face, dilation=0)
    assert not below.any()
    assert torch.equal(above, logits[1].sigmoid())


def test_load_segmenter_takes_the_running_average(tmp_path: Path) -> None:
    segmenter = MaskSegmenter(8)
    segmenter.gate.fill_(0.07)
    state = {f"average.module.{key}": value for key, value in segmenter.state_dict().items()}
    other = {f"segmenter.{key}": value + 1 for key, value in segmenter.state_dict().items()}
    torch.save(
        {"stage": "segmentation", "hyper_parameters": {"width": 8}, "state_dict": state | other}, tmp_path / "a.ckpt"
    )
    loaded, face = load_segmenter(tmp_path / "a.ckpt"), _faces()
    assert loaded.gate == segmenter.gate
    assert torch.equal(loaded(face), segmenter(face))


def test_load_segmenter_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_segmenter(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        load_segmenter(tmp_path / "text.ckpt")
    torch.save({"stage": "inpainting", "hyper_parameters": {}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="stage 'inpainting', not of 'segmentation'"):
        load_segmenter(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator(6), "multiple of 4"),
        (lambda: Generator(8, depth=0), "depth"),
        (lambda: Generator(8)(_faces()[:, :1], _faces()[:, :1]), "H and W of at least 16"),
        (lambda: Generator(8)(_faces(1, 12, 40), torch.zeros(1, 1, 12, 40)), "at least 16"),
        (lambda: Generator(8)(_faces(2), torch.zeros(1, 1, 40, 40)), "expected a mask of shape"),
        (lambda: Generator(8, attention=False).attend(_faces(), torch.zeros(2, 1, 40, 40)), "attention=True"),
        (lambda: GlobalLocalDiscriminator(8)(_faces(), torch.zeros(2, 40, 40)), "expected a mask of shape"),
        (lambda: MaskSegmenter(8)(torch.zeros(3, 40, 40)), "expected faces"),
        (lambda: MaskSegmenter(8).predict_mask(_faces(), dilation=-1), "dilation must be at least 0"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
