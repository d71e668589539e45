"""Any image network of timm as a recogniser: its pooled features are the embedding."""

from typing import Any

from torch import nn

import deocc._torchvision  # noqa: F401  # before timm
from deocc.networks.embedders.spec import EmbedderSpec, Recogniser, Triple
from deocc.networks.weights import find_weights, load_weights, read_state_dict

# OURS: faces are cut as for ArcFace; networks that take one size only get that one.
TEMPLATE, SIZE = "arcface", 112

ONLINE = "timm"
"""The value of `weights` that asks timm to download."""


def build(name: str, weights: str | None, pretrained: bool) -> Recogniser:
    """The network `name`, "timm/" and timm's own name, with the weights of a file, timm's own ("timm": downloads), or random ones (None).

    Raises:
        FileNotFoundError: no such file, or the download failed.
        ValueError: timm has no such network, or the file is damaged or holds another network.
    """
    import timm  # here, since it takes a second

    model = name.removeprefix("timm/")
    if not timm.is_model(model):
        raise ValueError(f"timm has no network {model!r}: timm.list_models() lists those it has, as in timm/resnet18")
    network: Any = _download(model) if weights == ONLINE else timm.create_model(model, num_classes=0)
    config = network.pretrained_cfg
    if weights is not None and weights != ONLINE:
        path = find_weights(weights, by_hand(model))
        classifiers = config.get("classifier") or ()
        ignored = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        load_weights(network, read_state_dict(path), path, ignored=tuple(f"{classifier}." for classifier in ignored))
    size = config["input_size"][-1] if config.get("fixed_input_size") else SIZE
    spec = EmbedderSpec(TEMPLATE, size, mean=_bytes(config["mean"]), std=_bytes(config["std"]))
    return Recogniser(network, spec, pretrained=weights is not None)


def by_hand(model: str) -> str:
    """How to get timm's weights of `model` without timm."""
    import timm

    config = timm.get_pretrained_cfg(model)
    page = f"https://huggingface.co/{config.hf_hub_id}" if config and config.hf_hub_id else "timm's documentation"
    return f"download model.safetensors from {page} and give weights= its path"


def _download(model: str) -> nn.Module:
    import timm

    try:
        network: nn.Module = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # its hub client raises errors of whichever HTTP library it uses
        raise FileNotFoundError(
            f"timm could not get weights of {model!r} ({type(error).__name__}): {by_hand(model)}"
        ) from error
    return network


def _bytes(fractions: tuple[float, ...]) -> Triple:
    red, green, blue = (255 * fraction for fraction in fractions)
    return red, green, blue
