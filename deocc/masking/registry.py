"""Registry of the kinds of occluder; the position of a kind is its number in batches and files."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deocc.masking.canvas import Kind
from deocc.masking.kinds import BUILT_IN
from deocc.masking.random import uniform

NO_OCCLUDER = -1  # number of a face without occluder
_KINDS: dict[str, Kind] = {kind.name: kind for kind in BUILT_IN}


def list_kinds() -> tuple[str, ...]:
    """Return the names of all kinds by number: those of the package, then registered ones."""
    return tuple(_KINDS)


def register_kind(kind: Kind) -> None:
    """Add a kind of occluder after the existing ones.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"an occluder named {kind.name!r} exists already: choose another name than {known}")
    _KINDS[kind.name] = kind


def get_kind(number: int) -> Kind:
    """Return the kind at this position of `list_kinds()`."""
    return list(_KINDS.values())[number]


def kind_numbers(names: Sequence[str]) -> list[int]:
    """Return the positions of the named kinds in `list_kinds()`; ValueError for an unknown name."""
    known = list_kinds()
    for name in names:
        if name not in known:
            raise ValueError(f"unknown occluder {name!r}: choose from {', '.join(known)}")
    return [known.index(name) for name in names]


def draw_kinds(seeds: Tensor, kinds: Sequence[str] | None = None, clean_probability: float = 0.0) -> Tensor:
    """Draw an occluder for each image from its seed: (B,) int64 positions in `list_kinds()`, -1 for no occluder.

    Args:
        seeds: (B,) int64.
        kinds: names to choose from with equal probability; None for all of `list_kinds()`.
        clean_probability: probability of no occluder, in [0, 1].

    Raises:
        ValueError: an unknown or no kind, or a probability outside [0, 1].
    """
    numbers = kind_numbers(list_kinds() if kinds is None else kinds)
    if not numbers or not 0 <= clean_probability <= 1:
        got = f"got {kinds} and {clean_probability}"
        raise ValueError(f"expected at least one kind and 0 <= clean_probability <= 1, {got}")
    choice, clean = uniform(seeds, 2).unbind(1)
    chosen = torch.tensor(numbers, device=seeds.device)[(choice * len(numbers)).long()]
    return torch.where(clean < clean_probability, NO_OCCLUDER, chosen)
