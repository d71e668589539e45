"""Recognisers behind one door: canonical face crop in, embedding out.

Each recogniser wants its own crop, size, colours and normalisation; `Embedder` takes them from the canonical crop by a constant,
differentiable warp, so that gradients reach whatever completed the face. To add a recogniser, write one file with a `build` function
like those of this folder and name it in `_BUILDERS` (README, "Adding a recogniser").
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.geometry import Template, canonical_to, get_template, warp
from deocc.networks.embedders import dlib as dlib_resnet
from deocc.networks.embedders import facenet as inception_resnet
from deocc.networks.embedders import iresnet
from deocc.networks.embedders import onnx as onnx_embedder
from deocc.networks.embedders import timm as timm_backbone
from deocc.networks.embedders.onnx import OnnxNetwork
from deocc.networks.embedders.spec import Colour, EmbedderSpec, Recogniser, Triple


def teacher_fingerprint(teacher: "Embedder") -> str:
    """A hash of all that decides what a teacher gives for a face: its network's name, its weights, what it expects at its input."""
    digest = hashlib.sha256(repr((teacher.name, teacher.spec, teacher.template)).encode())
    for name, value in teacher.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    if isinstance(teacher.network, OnnxNetwork):  # its weights are no parameters
        with teacher.network.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


_BUILDERS: dict[str, Callable[[str, str | None, bool], Recogniser]] = {
    "dlib_resnet": dlib_resnet.build,
    "inception_resnet_v1": inception_resnet.build,
    **dict.fromkeys(iresnet.BLOCKS, iresnet.build),
    "onnx": onnx_embedder.build,
    "timm/": timm_backbone.build,
}

_OPTIONS = {
    "template": "the name of a face template",
    "size": "a whole number of pixels",
    "color": "rgb or bgr",
    "mean": "three numbers",
    "std": "three numbers",
    "mirror": "true or false",
}


@runtime_checkable
class HasParts(Protocol):
    """A network that knows its own sections."""

    def parts(self) -> list[nn.Module]:
        """Sections in forward order; the last one is the head, possibly without parameters."""


class Embedder(nn.Module):
    """A recogniser that takes canonical crops.

    Under autocast, the linear layers of its head are computed in the precision of their weights all the same: embeddings of different
    people can be alike to 0.86, and what tells them apart would be rounded away in bfloat16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, recogniser: Recogniser) -> None:
        """Wrap a network.

        Args:
            name: under which `create_embedder` knows it.
            recogniser: the network, what it expects, and what is known of its weights.

        Raises:
            ValueError: the network does not take images of the declared size, or gives no (B, D).
        """
        super().__init__()
        self.name = name
        self.spec = recogniser.spec
        self.network = recogniser.network
        self.pretrained = recogniser.pretrained
        self.differentiable = recogniser.differentiable
        self.frozen = False
        self.extra_channels = 0
        self.widened_layer: str | None = None
        self.input_size = self.spec.size
        self.template = _scaled(get_template(self.spec.template), self.spec.size)
        # Not persistent: they belong to the recogniser's declaration, not to its weights.
        self.register_buffer("mean", torch.tensor(self.spec.mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.spec.std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.embedding_dim = _embedding_dim(name, self.network, self.spec)
        # Activations follow the weights: 1.2 times as fast on a CPU core, more in bfloat16.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self._sections()[-1].modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(_outside_autocast)
        if not self.differentiable:
            self.freeze()

    def forward(self, face: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed faces.

        Args:
            face: (B, 3, S, S) RGB in [-1, 1], canonical crops of any side.
            extra: (B, E, S, S) further input channels such as a mask, passed on as they are; exactly where `widen_stem` added E of them.

        Returns:
            (B, D) raw embeddings, of any length.

        Raises:
            ValueError: the shapes are not these.
        """
        embedding = self.embed_crop(*self.crop(face, extra))
        if self.spec.mirror and not self.training:
            mirrored = self.embed_crop(*self.crop(face.flip(-1), None if extra is None else extra.flip(-1)))
            embedding = (embedding + mirrored) / 2
        return embedding

    def crop(self, face: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Arguments as for `forward`, cut to the recogniser's own template: (B, 3 or E, input_size, input_size), ranges unchanged."""
        self._check(face, extra)
        # In float32, because half precision cannot even tell the pixels of a crop apart.
        channels = face.float() if extra is None else torch.cat([face.float(), extra.float()], 1)
        cropped = warp(channels, canonical_to(self.template, face.shape[-1]), self.input_size)
        return cropped[:, :3], None if extra is None else cropped[:, 3:]

    def embed_crop(self, crop: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed what `crop` returns: RGB in [-1, 1] and extra channels, already in the recogniser's own template -> (B, D)."""
        pixels = (crop + 1) * 127.5
        if self.spec.color == "bgr":
            pixels = pixels.flip(1)
        channels = (pixels - self.mean) / self.std
        if extra is not None:
            channels = torch.cat([channels, extra], 1)
        embedding: Tensor = self.network(channels.to(self.mean.dtype))
        return embedding

    def embed_with_features(self, face: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, and the feature maps (B, C, h, w) after every section of the network but the head, early ones first."""
        maps: list[Tensor] = []
        hooks = [
            part.register_forward_hook(lambda _module, _input, output: maps.append(output))
            for part in self._sections()[:-1]
        ]
        try:
            embedding = self(face)
        finally:
            for hook in hooks:
                hook.remove()
        return embedding, [features for features in maps if features.ndim == 4]

    def freeze(self) -> Self:
        """Fix the weights, and stay in evaluation mode whatever mode a parent is put into. Returns itself."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, without effect once frozen."""
        return super().train(mode and not self.frozen)

    def trainable_tail(self, blocks: int) -> list[nn.Parameter]:
        """Parameters of the last `blocks` sections before the head, and of the head.

        Raises:
            ValueError: the network has not that many sections.
        """
        parts = self._sections()
        if not 0 <= blocks < len(parts):
            raise ValueError(f"{self.name} has {len(parts) - 1} blocks before its head, got blocks={blocks}")
        return [parameter for part in parts[len(parts) - 1 - blocks :] for parameter in part.parameters()]

    def _sections(self) -> list[nn.Module]:
        return self.network.parts() if isinstance(self.network, HasParts) else _parts(self.network)

    def _check(self, face: Tensor, extra: Tensor | None) -> None:
        if face.ndim != 4 or face.shape[1] != 3 or face.shape[2] != face.shape[3]:
            raise ValueError(f"expected canonical face crops of shape (B, 3, S, S), got {tuple(face.shape)}")
        expected = (face.shape[0], self.extra_channels, *face.shape[2:])
        if extra is None and self.extra_channels:
            raise ValueError(
                f"{self.name} was widened by {self.extra_channels} channels: pass extra of shape {expected}"
            )
        if extra is not None and extra.shape != expected:
            raise ValueError(
                f"{self.name} takes extra channels of shape {expected}, got {tuple(extra.shape)}: see widen_stem"
            )


def create_teacher(name: str, weights: str | None = None, **options: Any) -> Embedder:
    """A frozen recogniser with trained weights; arguments and errors as for `create_embedder`.

    Raises:
        ValueError: also where no weights are known, since random ones can teach nothing.
    """
    teacher = create_embedder(name, weights, **options)
    if not teacher.pretrained:
        raise ValueError(
            f"the teacher {name!r} needs trained weights: give the path of a weights file as model.init_args.teacher_weights"
        )
    return teacher.freeze()


def read_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of `create_embedder` from a configuration file; None = no options.

    Raises:
        ValueError: an unknown option, or a value of another type than it takes; ranges are checked by `EmbedderSpec`.
    """
    options = dict(options or {})
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"unknown recogniser option {name!r}: choose among {', '.join(_OPTIONS)}")
        if value is not None and not _fits(name, value):
            raise ValueError(f"the recogniser option {name} is {_OPTIONS[name]}, got {value!r}")
    return options


def _fits(option: str, value: Any) -> bool:
    if option in ("mean", "std"):
        return (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(isinstance(number, int | float) for number in value)
        )
    return isinstance(value, {"size": int, "mirror": bool}.get(option, str))


def _outside_autocast(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook: what `layer` gives in the precision of its weights, where autocast has rounded it."""
    if output.dtype == layer.weight.dtype:
        return output
    with torch.autocast(output.device.type, enabled=False):
        return F.linear(inputs[0].to(layer.weight.dtype), layer.weight, layer.bias)


def _scaled(template: Template, size: int) -> Template:
    if size == template.size:
        return template
    return Template(size, tuple((float(x), float(y)) for x, y in template.tensor(size)))


def _parts(network: nn.Module) -> list[nn.Module]:
    """Children with parameters, a Sequential counting as its members, and an empty head."""
    children = [
        part for child in network.children() for part in (child if isinstance(child, nn.Sequential) else [child])
    ]
    return [part for part in children if any(True for _ in part.parameters())] + [nn.Identity()]


@torch.no_grad()
def _embedding_dim(name: str, network: nn.Module, spec: EmbedderSpec) -> int:
    """D, found by a dry run, which also proves that the network takes what `spec` declares."""
    training = network.training
    try:
        output = network.eval()(torch.zeros(1, 3, spec.size, spec.size))
    except Exception as error:  # foreign networks raise what they like
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{name} does not take images of {spec.size} x {spec.size} pixels ({reason}): choose another size"
        ) from None
    finally:
        network.train(training)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(
            f"{name} must map (1, 3, {spec.size}, {spec.size}) to one embedding (1, D): give a network without further outputs"
        )
    return output.shape[1]


def list_embedders() -> tuple[str, ...]:
    """Names that `create_embedder` takes; one that ends with "/" is followed by a name of that family, as in "timm/resnet18"."""
    return tuple(_BUILDERS)


def create_embedder(
    name: str,
    weights: str | None = None,
    *,
    pretrained: bool = True,
    template: str | None = None,
    size: int | None = None,
    color: Colour | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    mirror: bool | None = None,
) -> Embedder:
    """Build a recogniser.

    Args:
        name: one of `list_embedders()`.
        weights: path of its weights; None = those that an installed package ships (dlib_resnet), else random ones; "timm" lets a network
            of timm download its own.
        pretrained: False = random weights in any case.
        template: face template instead of the recogniser's own; the following likewise.
        size: side of the network's input in pixels.
        color: order of the channels.
        mean: what to subtract from values in 0..255, a number a channel in the network's order.
        std: what to divide by then.
        mirror: whether evaluation takes the mean over a face and its mirror image.

    Returns:
        The embedder; its attribute `pretrained` tells whether weights were loaded.

    Raises:
        ValueError: unknown name or option, or weights that do not fit.
        FileNotFoundError: no weights where they should be.
        ImportError: the recogniser needs a package that is not installed.
    """
    if weights is not None and not pretrained:
        raise ValueError(f"weights={weights!r} and pretrained=False contradict each other: give one of the two")
    recogniser = _builder(name)(name, weights, pretrained)
    given: dict[str, Any] = {
        "template": template,
        "size": size,
        "color": color,
        "mean": mean,
        "std": std,
        "mirror": mirror,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    return Embedder(name, replace(recogniser, spec=replace(recogniser.spec, **changed)))


def _builder(name: str) -> Callable[[str, str | None, bool], Recogniser]:
    family = f"{name.split('/')[0]}/" if "/" in name else name
    if family not in _BUILDERS:
        raise ValueError(f"unknown embedder {name!r}: choose one of {', '.join(list_embedders())}")
    return _BUILDERS[family]
