"""The door to all recognisers: registry, crops, gradients, weights, adaptation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deocc.geometry import TEMPLATES, canonical_to, get_template, transform_points
from deocc.networks import Embedder, EmbedderSpec, Projection, create_embedder, list_embedders, widen_stem
from deocc.networks.embedders import iresnet
from deocc.networks.embedders.registry import read_options
from deocc.networks.embedders.spec import Recogniser

TIMM = "timm/resnet18"
BUILT = {
    "dlib_resnet": ("dlib", 150, 128, "rgb"),
    "inception_resnet_v1": ("facenet", 160, 512, "rgb"),
    "iresnet18": ("arcface", 112, 512, "rgb"),
    TIMM: ("arcface", 112, 512, "rgb"),
}


@pytest.fixture(scope="module")
def embedders() -> dict[str, Embedder]:
    torch.manual_seed(0)
    return {name: create_embedder(name, pretrained=False).eval() for name in BUILT}


def _tiny(**changed: object) -> Embedder:
    """An embedder whose network is three pixels' colours: what it receives can be read off."""
    spec = EmbedderSpec(
        **{"template": "arcface", "size": 112, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)} | changed
    )
    return Embedder("tiny", Recogniser(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), spec, pretrained=False))


# Registry


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown embedder 'vgg'.*dlib_resnet.*iresnet100.*onnx.*timm/"):
        create_embedder("vgg")
    with pytest.raises(ValueError, match="unknown embedder 'torchhub/resnet18'"):
        create_embedder("torchhub/resnet18")
    with pytest.raises(ValueError, match="timm has no network 'nonsense'"):
        create_embedder("timm/nonsense")


def test_all_recognisers_are_listed():
    expected = {"dlib_resnet", "inception_resnet_v1", "iresnet18", "iresnet50", "iresnet100", "onnx", "timm/"}
    assert expected <= set(list_embedders())


@pytest.mark.parametrize("name", BUILT)
def test_each_recogniser_declares_its_crop(embedders, name):
    template, size, dim, colour = BUILT[name]
    embedder = embedders[name]
    assert (embedder.template, embedder.input_size) == (get_template(template), size)
    assert (embedder.embedding_dim, embedder.spec.color) == (dim, colour)
    assert embedder.differentiable and not embedder.pretrained
    assert embedder(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, dim)


@pytest.mark.parametrize("name", [*BUILT, "iresnet50"])
def test_black_and_white_reach_the_published_normalised_values(name):
    """(0 - mean) / std and (255 - mean) / std of each recogniser's own preprocessing, from its publication."""
    published = {
        "dlib_resnet": (
            (-122.782 / 256, -117.001 / 256, -104.298 / 256),
            (132.218 / 256, 137.999 / 256, 150.702 / 256),
        ),
        "inception_resnet_v1": ((-127.5 / 128,) * 3, (127.5 / 128,) * 3),
        "iresnet18": ((-1.0,) * 3, (1.0,) * 3),
        "iresnet50": ((-1.0,) * 3, (1.0,) * 3),
        TIMM: ((-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225)),
    }[name]
    spec = iresnet.SPEC if name.startswith("iresnet") else create_embedder(name, pretrained=False).spec
    colours = _tiny(template=spec.template, size=spec.size, mean=spec.mean, std=spec.std)
    for value, expected in zip((-1.0, 1.0), published, strict=True):
        torch.testing.assert_close(colours(torch.full((1, 3, 64, 64), value))[0], torch.tensor(expected))


def test_options_override_the_declaration():
    embedder = create_embedder(TIMM, size=96, color="bgr", template="facenet", mean=(1, 2, 3), std=(4, 5, 6))
    assert (embedder.input_size, embedder.template.size, embedder.spec.color) == (96, 96, "bgr")
    torch.testing.assert_close(embedder.template.tensor(160), TEMPLATES["facenet"].tensor(), atol=1e-4, rtol=0)
    assert embedder.std.flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "passport"}, "unknown face template 'passport'"),
        ({"size": 0}, "size must be a positive number"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"color": "gray"}, "'rgb' or 'bgr', got 'gray'"),
        ({"size": 20}, "dlib_resnet does not take images of 20 x 20 pixels"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_embedder("dlib_resnet", pretrained=False, **options)


def test_weights_without_pretrained_contradict():
    with pytest.raises(ValueError, match="contradict"):
        create_embedder("iresnet18", weights="some.pth", pretrained=False)


# Crop, colours, gradients


@pytest.mark.parametrize("template", ["arcface", "dlib", "facenet"])
@pytest.mark.parametrize("side", [112, 224])
def test_the_crop_puts_canonical_points_on_the_template(template, side):
    """The image holds its own coordinates: what lies at the template's eyes tells where they were taken from."""
    axis = torch.arange(side).float() / side
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    face = torch.stack([x, y, x])[None] - 0.5
    embedder = _tiny(template=template, size=get_template(template).size)
    crop, _ = embedder.crop(face)
    columns, rows = embedder.template.tensor().round().long().unbind(1)
    found = (crop[0, :2, rows, columns].T + 0.5) * side
    wanted = get_template("canonical").tensor(side)
    # Faces differ from templates: a similarity leaves up to a tenth of the eye distance (100 of 350 canonical pixels).
    assert (found - wanted).norm(dim=1).max() < 0.1 * side * 100 / 350
    at = transform_points(wanted, canonical_to(get_template(template), side))
    assert (at - get_template(template).tensor()).norm(dim=1).max() < 0.1 * float(
        embedder.template.tensor()[:2, 0].diff()
    )


def test_blue_green_red_is_the_reverse_of_red_green_blue():
    face = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(_tiny(color="bgr")(face), _tiny()(face).flip(1))
    # Means belong to the network's own order: the first is blue's here.
    assert _tiny(color="bgr", mean=(9.0, 0.0, 0.0))(face)[0, 0] == pytest.approx(
        float(_tiny()(face)[0, 2]) - 9, abs=1e-3
    )


@pytest.mark.parametrize("name", BUILT)
def test_gradient_reaches_the_face(embedders, name):
    face = (torch.rand(1, 3, 112, 112) * 2 - 1).requires_grad_()
    embedders[name](face).square().sum().backward()
    assert face.grad is not None and face.grad.isfinite().all()
    # An untrained ResNet of timm is all strided shortcuts, which see one pixel in eight.
    assert (face.grad[:, :, 40:70, 40:70].abs().amax(1) > 0).float().mean() > 0.1


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 48)])
def test_other_shapes_than_square_faces_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected canonical face crops of shape \(B, 3, S, S\)"):
        _tiny()(torch.zeros(shape))


def test_half_precision_faces_are_cropped_as_exactly_as_full_ones():
    face = torch.rand(1, 3, 64, 64) * 2 - 1
    low = face.to(torch.bfloat16)
    assert torch.equal(_tiny().crop(low)[0], _tiny().crop(low.float())[0])


# Freezing and fine-tuning


def test_a_frozen_embedder_stays_in_evaluation_mode():
    embedder = create_embedder(TIMM).freeze()
    parent = nn.ModuleList([embedder]).train()
    assert parent.training and not any(module.training for module in embedder.modules())
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    face = torch.rand(1, 3, 64, 64, requires_grad=True)
    embedder(face).sum().backward()
    assert face.grad is not None


def test_an_embedder_that_is_not_frozen_follows_its_parent(embedders):
    embedder = embedders[TIMM]
    nn.ModuleList([embedder]).train()
    assert embedder.network.training
    embedder.eval()
    assert not embedder.network.training


def test_the_tail_of_each_architecture(embedders):
    network = embedders["iresnet18"].network
    expected = {
        id(p) for part in (network.layer4, network.bn2, network.fc, network.features) for p in part.parameters()
    }
    assert {id(p) for p in embedders["iresnet18"].trainable_tail(2)} == expected
    network = embedders["inception_resnet_v1"].network
    expected = {
        id(p)
        for part in (network.repeat_3, network.block8, network.last_linear, network.last_bn)
        for p in part.parameters()
    }
    assert {id(p) for p in embedders["inception_resnet_v1"].trainable_tail(2)} == expected
    network = embedders[TIMM].network
    assert {id(p) for p in embedders[TIMM].trainable_tail(2)} == {id(p) for p in network.layer4.parameters()}
    assert embedders[TIMM].trainable_tail(0) == []


@pytest.mark.parametrize("name", BUILT)
def test_a_widened_stem_changes_nothing_until_it_is_trained(name):
    embedder = create_embedder(name, pretrained=False).eval()
    face, extra = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 2, 64, 64)
    before = embedder(face)
    assert widen_stem(embedder, 2) is embedder
    after = embedder(face, extra)
    torch.testing.assert_close(after, before)
    stem = next(module for module in embedder.network.modules() if isinstance(module, nn.Conv2d))
    after.square().sum().backward()
    assert stem.weight.grad[:, 3:].abs().max() > 0
    with torch.no_grad():
        stem.weight[:, 3:] += 0.1
    assert not torch.allclose(embedder(face, extra), before)


def test_extra_channels_are_cropped_like_the_face_and_not_normalised():
    seen: list[Tensor] = []
    embedder = _tiny(mean=(127.5,) * 3, std=(127.5,) * 3)
    embedder.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedder.extra_channels = 1
    face = torch.rand(1, 1, 64, 64).expand(1, 3, 64, 64)
    embedder(face, face[:, :1])
    torch.testing.assert_close(seen[0][:, 3], seen[0][:, 0], atol=1e-5, rtol=0)


def test_extra_channels_and_widening_belong_together():
    embedder = create_embedder(TIMM)
    face = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="see widen_stem"):
        embedder(face, face[:, :1])
    widen_stem(embedder, 1)
    with pytest.raises(ValueError, match="widened by 1 channels: pass extra"):
        embedder(face)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 64, 64\), got \(1, 2, 64, 64\)"):
        embedder(face, face[:, :2])
    with pytest.raises(ValueError, match="widened once"):
        widen_stem(embedder, 1)
    with pytest.raises(ValueError, match="no convolution of three channels"):
        widen_stem(_tiny(), 1)


def test_projection_is_linear_and_the_identity_where_dimensions_agree():
    embedding = torch.rand(2, 5)
    assert torch.equal(Projection(5, 5)(embedding), embedding) and not list(Projection(5, 5).parameters())
    projection = Projection(5, 3)
    assert projection(torch.zeros(1, 5)).abs().max() == 0 and projection(embedding).shape == (2, 3)
    with pytest.raises(ValueError, match="got 0 and 3"):
        Projection(0, 3)


# Mirror images


def test_embedder_mirror_averages_in_evaluation() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=7), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )  # tells left from right
    spec = EmbedderSpec("arcface", 112, mean=(127.5,) * 3, std=(127.5,) * 3)
    plain = Embedder("plain", Recogniser(network, spec, pretrained=False)).eval()
    mirror = Embedder("mirror", Recogniser(network, replace(spec, mirror=True), pretrained=False)).eval()
    widen_stem(plain, 1)
    nn.init.normal_(network[0].weight)
    mirror.extra_channels = 1  # one network serves both
    face, extra = torch.rand(2, 3, 112, 112) * 2 - 1, torch.rand(2, 1, 112, 112)
    single, flipped = plain(face, extra), plain(face.flip(-1), extra.flip(-1))
    assert not torch.allclose(single, flipped, atol=0.1)
    torch.testing.assert_close(mirror(face, extra), (single + flipped) / 2)
    assert torch.equal(mirror.train()(face, extra), single)


def test_embedder_mirror_is_an_option_in_files() -> None:
    assert read_options({"mirror": True}) == {"mirror": True}
    with pytest.raises(ValueError, match="option mirror is true or false, got 1"):
        read_options({"mirror": 1})
