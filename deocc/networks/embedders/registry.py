"""Creation of embedders by name.

To add a backbone, write a file in this folder with a function `build(name, weights, pretrained)` that returns a
`Backbone` and raises the errors of `create_embedder`, and register it in `_BUILDERS`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from deocc.networks.embedders import dlib, facenet, iresnet, onnx, sface, timm
from deocc.networks.embedders.embedder import Backbone, Colour, Embedder, Triple

_BUILDERS: dict[str, Callable[[str, str | None, bool], Backbone]] = {
    "dlib_resnet": dlib.build,
    "inception_resnet_v1": facenet.build,
    **dict.fromkeys(iresnet.BLOCKS, iresnet.build),
    "onnx": onnx.build,
    "sface": sface.build,
    "timm/": timm.build,
}

# Options of `create_embedder` in configuration files, as described in error messages.
_OPTIONS = {
    "template": "the name of a face template",
    "size": "a whole number of pixels",
    "color": "rgb or bgr",
    "mean": "three numbers",
    "std": "three numbers",
    "mirror": "true or false",
}


def list_embedders() -> tuple[str, ...]:
    """Return the names accepted by `create_embedder`; "timm/" is followed by a model name, as in "timm/resnet18"."""
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
    """Create an embedder.

    Args:
        name: one of `list_embedders()`.
        weights: path of the weights; "timm" downloads those of a timm model. None uses weights that come with an
            installed package (dlib_resnet, sface), otherwise random weights.
        pretrained: False forces random weights.
        template: face template; None uses the backbone's own, here and below.
        size: side of the backbone's input in pixels.
        color: colour order of the backbone's input.
        mean: subtracted from values in 0 to 255, per channel in the backbone's colour order.
        std: divides the result.
        mirror: in evaluation mode, average over a face and its mirror image.

    Returns:
        Embedder, with `pretrained` False if its weights are random.

    Raises:
        ValueError: unknown name or option, or weights that do not match.
        FileNotFoundError: the weights do not exist.
        ImportError: a required package is not installed.
    """
    if weights is not None and not pretrained:
        raise ValueError(f"weights={weights!r} and pretrained=False contradict each other: give one of the two")
    family = f"{name.split('/')[0]}/" if "/" in name else name
    if family not in _BUILDERS:
        raise ValueError(f"unknown embedder {name!r}: choose one of {', '.join(list_embedders())}")
    backbone = _BUILDERS[family](name, weights, pretrained)
    options = {"template": template, "size": size, "color": color, "mean": mean, "std": std, "mirror": mirror}
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    spec = replace(backbone.spec, **given)
    if spec.color is None:
        raise ValueError(
            f"{weights} does not tell the colour order of its network's input: see the model's card and set the option "
            "color to rgb or bgr; for a teacher by teacher_options: {color: rgb}"
        )
    return Embedder(name, replace(backbone, spec=spec))


def create_teacher(name: str, weights: str | None = None, **options: Any) -> Embedder:
    """Create a frozen, pretrained embedder; as `create_embedder`, and ValueError if the weights would be random."""
    teacher = create_embedder(name, weights, **options)
    if not teacher.pretrained:
        raise ValueError(
            f"the teacher {name!r} needs trained weights: "
            "give the path of a weights file as model.init_args.teacher_weights"
        )
    return teacher.freeze()


def teacher_fingerprint(teacher: Embedder) -> str:
    """Return a hash of everything that determines a teacher's embeddings: name, input and weights."""
    digest = hashlib.sha256(repr((teacher.name, teacher.spec, teacher.template)).encode())
    for name, value in teacher.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    if isinstance(teacher.network, onnx.OnnxNetwork):  # its weights are not parameters
        with teacher.network.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of `create_embedder` in a configuration file; ValueError for unknown names or wrong types.

    `EmbedderSpec` checks the ranges.
    """
    options = dict(options or {})
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"unknown recogniser option {name!r}: choose among {', '.join(_OPTIONS)}")
        if name in ("mean", "std"):
            numbers = value if isinstance(value, list | tuple) else ()
            valid = len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers)
        else:
            valid = isinstance(value, {"size": int, "mirror": bool}.get(name, str))
        if value is not None and not valid:
            raise ValueError(f"the recogniser option {name} is {_OPTIONS[name]}, got {value!r}")
    return options
