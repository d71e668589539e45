"""Image backbones of timm, whose pooled features are the embedding."""

from typing import Any

import deocc._torchvision  # noqa: F401  # before timm
from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights, load_weights, read_state_dict

TEMPLATE, SIZE = "arcface", 112  # faces are cropped as for ArcFace, except for networks of a fixed size; our choice
ONLINE = "timm"  # value of `weights` that makes timm download them


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Build a timm model with the weights of a file, with downloaded ones (`ONLINE`) or with random ones."""
    import timm  # slow to import

    model = name.removeprefix("timm/")
    if not timm.is_model(model):
        raise ValueError(f"timm has no network {model!r}: timm.list_models() lists those it has, as in timm/resnet18")
    try:
        network: Any = timm.create_model(model, pretrained=weights == ONLINE, num_classes=0)
    except Exception as error:  # the hub client raises errors of its HTTP library
        if weights != ONLINE:
            raise
        raise FileNotFoundError(
            f"timm could not get weights of {model!r} ({type(error).__name__}): {_download_advice(model)}"
        ) from error
    config = network.pretrained_cfg
    if weights is not None and weights != ONLINE:
        path = find_weights(weights, _download_advice(model))
        classifiers = config.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        load_weights(network, read_state_dict(path), path, ignored=tuple(f"{name}." for name in classifiers))
    size = config["input_size"][-1] if config.get("fixed_input_size") else SIZE
    mean, std = (tuple(255 * fraction for fraction in config[name]) for name in ("mean", "std"))
    spec = EmbedderSpec(TEMPLATE, size, mean=mean, std=std)
    return Backbone(network, spec, pretrained=weights is not None)


def _download_advice(model: str) -> str:
    import timm

    config = timm.get_pretrained_cfg(model)
    page = f"https://huggingface.co/{config.hf_hub_id}" if config and config.hf_hub_id else "timm's documentation"
    return f"download model.safetensors from {page} and give weights= its path"
