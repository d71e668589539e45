"""Uniform wrapper around face recognition backbones: canonical face crop in, embedding out.

Every backbone expects its own crop, size, colour order and normalisation. `Embedder` derives them from the canonical
crop by a constant, differentiable warp, so that gradients reach the generator that completed the face.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.geometry import Template, canonical_to, get_template, warp
from deocc.messages import describe_error

Colour = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]
MEAN_SHARE = 0.3
"""Share that `unit_embedding` keeps of the component along the mean; chosen on validation people of LFW, with dlib."""


@dataclass(frozen=True)
class EmbedderSpec:
    """Input of a backbone: crop, colour order and normalisation (value - mean) / std of values in 0 to 255.

    Raises ValueError if a value is out of range.
    """

    template: str  # name in `deocc.geometry.TEMPLATES`
    size: int  # side in pixels; the template is scaled to it
    mean: Triple  # per channel, in the backbone's colour order
    std: Triple
    color: Colour | None = "rgb"  # None if the weights do not tell, so that `create_embedder` asks for it
    mirror: bool = False  # in evaluation mode, average over face and mirror image, as is common on LFW: twice the cost

    def __post_init__(self) -> None:
        get_template(self.template)
        if self.size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, std positive, got {self.mean} and {self.std}")
        if self.color not in ("rgb", "bgr", None):
            raise ValueError(f"color must be 'rgb' or 'bgr', got {self.color!r}")


@dataclass(frozen=True)
class Backbone:
    """Result of a `build` function.

    A network may declare its sections by `parts() -> list[nn.Module]`, in forward order; the last one is the head.
    """

    network: nn.Module  # maps images (B, 3, size, size), normalised according to `spec`, to embeddings (B, D)
    spec: EmbedderSpec
    pretrained: bool  # weights were loaded; otherwise they are random
    differentiable: bool = True  # gradients pass through the network


class Embedder(nn.Module):
    """Backbone that takes canonical crops.

    Under autocast, the linear layers of the head run in the precision of their weights: embeddings of different people
    have cosines up to 0.86, and bfloat16 would round their difference away.

    Args:
        name: name known to `create_embedder`.
        backbone: network and its input.

    Raises:
        ValueError: the network does not accept images of the declared size, or does not return (B, D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, backbone: Backbone) -> None:
        super().__init__()
        spec = backbone.spec
        self.name, self.spec, self.network = name, spec, backbone.network
        self.pretrained, self.differentiable = backbone.pretrained, backbone.differentiable
        self.frozen = False
        self.extra_channels = 0
        self.widened_layer: str | None = None
        self.input_size = spec.size
        self.template = get_template(spec.template)
        if self.template.size != spec.size:
            points = self.template.tensor(spec.size).tolist()
            self.template = Template(spec.size, tuple((x, y) for x, y in points))
        # Not persistent: part of the declaration, not of the weights.
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        # A dry run determines D, and verifies that the network accepts the declared size.
        training = self.network.training
        try:
            with torch.no_grad():
                output = self.network.eval()(torch.zeros(1, 3, spec.size, spec.size))
        except Exception as error:  # external networks raise arbitrary errors
            reason = describe_error(error)
            raise ValueError(
                f"{name} does not take images of {spec.size} x {spec.size} pixels ({reason}): choose another size"
            ) from None
        finally:
            self.network.train(training)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise ValueError(f"{name} must return one embedding (1, D): give a network without further outputs")
        self.embedding_dim = output.shape[1]
        # Activations follow the memory format of the weights: 1.2 times as fast on a CPU core, more in bfloat16.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self._sections()[-1].modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(_outside_autocast)
        if not self.differentiable:
            self.freeze()

    def forward(self, face: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed faces.

        Args:
            face: canonical RGB crops (B, 3, S, S) in [-1, 1] of any side.
            extra: further channels (B, E, S, S), such as a mask, passed on unchanged; required if and only if
                `widen_stem` added E channels.

        Returns:
            Embeddings (B, D), not normalised.

        Raises:
            ValueError: the shapes do not match.
        """
        embedding = self.embed_crop(*self.crop(face, extra))
        if self.spec.mirror and not self.training:
            mirrored = self.embed_crop(*self.crop(face.flip(-1), None if extra is None else extra.flip(-1)))
            embedding = (embedding + mirrored) / 2
        return embedding

    def crop(self, face: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Warp canonical crops to the backbone's template; arguments and errors as for `forward`.

        Returns:
            Face (B, 3, input_size, input_size) and extra channels (B, E, input_size, input_size) in unchanged ranges.
        """
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
        # float32: half precision cannot represent the coordinates of individual pixels.
        channels = face.float() if extra is None else torch.cat([face.float(), extra.float()], 1)
        cropped = warp(channels, canonical_to(self.template, face.shape[-1]), self.input_size)
        return cropped[:, :3], None if extra is None else cropped[:, 3:]

    def embed_crop(self, crop: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed the output of `crop`: RGB in [-1, 1] and extra channels -> (B, D)."""
        pixels = (crop + 1) * 127.5
        if self.spec.color == "bgr":
            pixels = pixels.flip(1)
        channels = (pixels - self.mean) / self.std
        if extra is not None:
            channels = torch.cat([channels, extra], 1)
        embedding: Tensor = self.network(channels.to(self.mean.dtype))
        return embedding

    def embed_with_features(self, face: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return embeddings (B, D) and the feature maps (B, C, h, w) after each section before the head, in order."""
        maps: list[Tensor] = []
        with ExitStack() as hooks:
            for section in self._sections()[:-1]:
                hook = section.register_forward_hook(lambda _section, _inputs, output: maps.append(output))
                hooks.callback(hook.remove)
            embedding = self(face)
        return embedding, [features for features in maps if features.ndim == 4]

    def freeze(self) -> Self:
        """Fix the weights and stay in evaluation mode, whatever the mode of a parent module; returns itself."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as in `nn.Module.train`, unless frozen."""
        return super().train(mode and not self.frozen)

    def trainable_tail(self, blocks: int) -> list[nn.Parameter]:
        """Return the parameters of the head and of the last `blocks` sections; ValueError if there are fewer."""
        sections = self._sections()
        if not 0 <= blocks < len(sections):
            raise ValueError(f"{self.name} has {len(sections) - 1} blocks before its head, got blocks={blocks}")
        return [parameter for part in sections[len(sections) - 1 - blocks :] for parameter in part.parameters()]

    def _sections(self) -> list[nn.Module]:
        """Return the declared sections, or the children with parameters, members of a Sequential, and an empty head."""
        network: Any = self.network
        if hasattr(network, "parts"):
            return list(network.parts())
        sections: list[nn.Module] = []
        for child in self.network.children():
            sections += child if isinstance(child, nn.Sequential) else [child]
        return [section for section in sections if any(True for _ in section.parameters())] + [nn.Identity()]


def _outside_autocast(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook that repeats a layer in the precision of its weights where autocast has rounded the output."""
    if output.dtype == layer.weight.dtype:
        return output
    with torch.autocast(output.device.type, enabled=False):
        return F.linear(inputs[0].to(layer.weight.dtype), layer.weight, layer.bias)


def unit_embedding(raw: Tensor, center: Tensor, share: float = MEAN_SHARE) -> Tensor:
    """Normalise raw embeddings after scaling down what faces have in common: their component along the mean embedding.

    Raw dlib embeddings of different people have cosines of 0.86. Removing the component, as in [1], or subtracting the
    mean costs accuracy on bare faces; keeping it whole costs accuracy on masked faces (docs/pages/choices.md).

    [1] Mu and Viswanath, "All-but-the-Top", ICLR 2018.

    Args:
        raw: (B, D).
        center: (D,), mean embedding; with zeros, embeddings are only normalised.
        share: what is kept of the component.

    Returns:
        Unit vectors (B, D) in float32.
    """
    raw, direction = raw.float(), center / center.norm().clamp_min(1e-12)
    common = (raw * direction).sum(1, keepdim=True) * direction  # not a product of matrices, which autocast would round
    return F.normalize(raw - (1 - share) * common, dim=1)


def centred(raw: Tensor, center: Tensor) -> Tensor:
    """Return unit vectors (raw - center) / |raw - center| of raw embeddings (B, D), always in float32."""
    return F.normalize(raw.float() - center, dim=1)
