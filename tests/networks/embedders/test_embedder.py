"""Embedder: crop, colours, gradients, freezing, sections, mirror images and precision of the head."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.geometry import canonical_to, get_template, transform_points
from deocc.networks import Embedder, EmbedderSpec, create_embedder, widen_stem
from deocc.networks.embedders.embedder import MEAN_SHARE, Backbone, unit_embedding

TIMM = "timm/resnet18"
# Input from the publications: template, side, dimension, mean and standard deviation of values in 0 to 255.
PUBLISHED: dict[str, tuple[str, int, int, tuple[float, ...], tuple[float, ...]]] = {
    "dlib_resnet": ("dlib", 150, 128, (122.782, 117.001, 104.298), (256.0,) * 3),
    "inception_resnet_v1": ("facenet", 160, 512, (127.5,) * 3, (128.0,) * 3),
    "iresnet18": ("arcface", 112, 512, (127.5,) * 3, (127.5,) * 3),
    TIMM: ("arcface", 112, 512, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
ALL = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture(scope="module")
def embedders() -> dict[str, Embedder]:
    return {name: create_embedder(name, pretrained=False).eval() for name in PUBLISHED}


def mean_colour(**changed: Any) -> Embedder:
    """Embedder whose embedding is the mean colour of its input."""
    default = {"template": "arcface", "size": 112, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Embedder("mean", Backbone(network, EmbedderSpec(**{**default, **changed}), pretrained=False))


def ids(parameters: Any) -> set[int]:
    return {id(parameter) for parameter in parameters}


@ALL
def test_backbone_input_as_published(embedders: dict[str, Embedder], name: str) -> None:
    template, size, dim, mean, std = PUBLISHED[name]
    embedder, spec = embedders[name], embedders[name].spec
    assert (embedder.template, embedder.input_size) == (get_template(template), size)
    assert (embedder.embedding_dim, spec.color) == (dim, "rgb")
    assert embedder.differentiable and not embedder.pretrained
    assert embedder(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, dim)
    colours = mean_colour(template=spec.template, size=spec.size, mean=spec.mean, std=spec.std)
    for value, byte in ((-1.0, 0), (1.0, 255)):
        expected = (byte - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(colours(torch.full((1, 3, 64, 64), value))[0], expected)


@ALL
def test_gradient_reaches_the_face(embedders: dict[str, Embedder], name: str) -> None:
    face = (torch.rand(1, 3, 112, 112) * 2 - 1).requires_grad_()
    embedders[name](face).square().sum().backward()
    assert face.grad is not None and face.grad.isfinite().all()
    # The shortcuts of an untrained ResNet of timm are strided and see one pixel in eight.
    assert (face.grad[:, :, 40:70, 40:70].abs().amax(1) > 0).float().mean() > 0.1


@pytest.mark.parametrize("template", ["arcface", "dlib", "facenet"])
@pytest.mark.parametrize("side", [112, 224])
def test_crop_maps_canonical_points_to_template(template: str, side: int) -> None:
    """The image contains its own coordinates, so the crop shows where its pixels come from."""
    axis = torch.arange(side).float() / side
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    embedder = mean_colour(template=template, size=get_template(template).size)
    crop, _ = embedder.crop(torch.stack([x, y, x])[None] - 0.5)
    columns, rows = embedder.template.tensor().round().long().unbind(1)
    found = (crop[0, :2, rows, columns].T + 0.5) * side
    wanted = get_template("canonical").tensor(side)
    # Templates differ by more than a similarity: up to a tenth of the eye distance (100 of 350 canonical pixels).
    assert (found - wanted).norm(dim=1).max() < 0.1 * side * 100 / 350
    mapped = transform_points(wanted, canonical_to(get_template(template), side))
    eye_distance = float(embedder.template.tensor()[:2, 0].diff())
    assert (mapped - get_template(template).tensor()).norm(dim=1).max() < 0.1 * eye_distance


def test_crop_of_half_precision_or_bad_shape() -> None:
    face = (torch.rand(1, 3, 64, 64) * 2 - 1).to(torch.bfloat16)
    assert torch.equal(mean_colour().crop(face)[0], mean_colour().crop(face.float())[0])
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 48)):
        with pytest.raises(ValueError, match=r"expected canonical face crops of shape \(B, 3, S, S\)"):
            mean_colour()(torch.zeros(shape))


def test_bgr_reverses_channels() -> None:
    face = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(mean_colour(color="bgr")(face), mean_colour()(face).flip(1))
    # The mean is in the network's order: the first channel is blue.
    found = mean_colour(color="bgr", mean=(9.0, 0.0, 0.0))(face)[0, 0]
    assert float(found) == pytest.approx(float(mean_colour()(face)[0, 2]) - 9, abs=1e-3)


def test_frozen_embedder_stays_in_evaluation_mode(embedders: dict[str, Embedder]) -> None:
    embedder = create_embedder(TIMM).freeze()
    parent = nn.ModuleList([embedder]).train()
    assert parent.training and not any(module.training for module in embedder.modules())
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    face = torch.rand(1, 3, 64, 64, requires_grad=True)
    embedder(face).sum().backward()
    assert face.grad is not None
    nn.ModuleList([embedders[TIMM]]).train()
    assert embedders[TIMM].network.training
    assert not embedders[TIMM].eval().network.training


def test_trainable_tail(embedders: dict[str, Embedder]) -> None:
    tails = {
        "iresnet18": ("layer4", "bn2", "fc", "features"),
        "inception_resnet_v1": ("repeat_3", "block8", "last_linear", "last_bn"),
        TIMM: ("layer4",),
    }
    for name, modules in tails.items():
        expected = [p for module in modules for p in embedders[name].network.get_submodule(module).parameters()]
        assert ids(embedders[name].trainable_tail(2)) == ids(expected)
    assert embedders[TIMM].trainable_tail(0) == []


def test_embed_with_features(embedders: dict[str, Embedder]) -> None:
    embedder, face = embedders["dlib_resnet"], torch.rand(2, 3, 64, 64) * 2 - 1
    embedding, maps = embedder.embed_with_features(face)
    torch.testing.assert_close(embedding, embedder(face))
    assert len(maps) == 15 and all(features.ndim == 4 and len(features) == 2 for features in maps)
    embedder(face)
    assert len(maps) == 15, "the hooks are removed"


def test_mirror_averages_in_evaluation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 7, stride=7), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    spec = EmbedderSpec("arcface", 112, mean=(127.5,) * 3, std=(127.5,) * 3)
    plain = Embedder("plain", Backbone(network, spec, pretrained=False)).eval()
    mirror = Embedder("mirror", Backbone(network, replace(spec, mirror=True), pretrained=False)).eval()
    widen_stem(plain, 1)
    nn.init.normal_(network[0].weight)  # type: ignore[arg-type]
    mirror.extra_channels = 1  # shares the network
    face, extra = torch.rand(2, 3, 112, 112) * 2 - 1, torch.rand(2, 1, 112, 112)
    single, flipped = plain(face, extra), plain(face.flip(-1), extra.flip(-1))
    assert not torch.allclose(single, flipped, atol=0.1)
    torch.testing.assert_close(mirror(face, extra), (single + flipped) / 2)
    assert torch.equal(mirror.train()(face, extra), single)


@pytest.mark.parametrize(
    ("name", "head"), [("dlib_resnet", "head"), ("iresnet18", "fc"), ("inception_resnet_v1", "last_linear")]
)
def test_head_runs_outside_autocast(name: str, head: str) -> None:
    embedder = create_embedder(name, pretrained=False).eval()
    layer: Any = embedder.network.get_submodule(head)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    face = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        embedder(face)
        with torch.autocast("cpu", torch.bfloat16):
            embedding = embedder(face)
    (full_features, _), (features, output) = seen
    assert embedding.dtype == output.dtype == torch.float32
    assert not torch.allclose(features.float(), full_features, rtol=1e-4), "earlier layers run in bfloat16"
    torch.testing.assert_close(output, F.linear(features.float(), layer.weight, layer.bias))
    gradients = []
    for low in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = layer(full_features).square().sum()
        gradients.append(torch.autograd.grad(loss, layer.weight)[0])
    torch.testing.assert_close(*gradients)


def test_component_along_the_mean_is_scaled() -> None:
    raw, center = torch.randn(5, 8), torch.eye(8)[1] * 3 + torch.eye(8)[4] * 4
    direction = center / 5
    unit = unit_embedding(raw, center)
    common = raw @ direction
    rest = raw - common[:, None] * direction
    length = ((MEAN_SHARE * common).square() + rest.square().sum(1)).sqrt()
    assert torch.allclose(unit @ direction, MEAN_SHARE * common / length, atol=1e-6)
    assert torch.allclose(unit - (unit @ direction)[:, None] * direction, rest / length[:, None], atol=1e-6)
    assert torch.allclose(unit_embedding(raw, torch.zeros(8)), F.normalize(raw, dim=1), atol=1e-6)


def test_unit_embedding_is_float32() -> None:
    raw, center = torch.randn(5, 8), torch.ones(8)
    assert unit_embedding(raw.bfloat16(), center).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        rounded = unit_embedding(raw, center)
    assert torch.equal(rounded, unit_embedding(raw, center))
