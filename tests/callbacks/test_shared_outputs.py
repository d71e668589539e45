"""Runs over the same images compute the outputs of frozen networks once, and get the same results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deocc.callbacks import SharedOutputsCallback
from deocc.networks import Deoccluder, Generator, create_embedder
from deocc.networks.segmenter import MaskSegmenter


class Module(torch.nn.Module):
    """The frozen networks of a stage 2, with random weights that depend on the seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.teacher = create_embedder("dlib_resnet", pretrained=False).eval()
        generator, segmenter = Generator(width=8), MaskSegmenter(width=8)
        self.deoccluder = Deoccluder(generator.config, segmenter.config, size=64)


@contextmanager
def counted_forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the names of the networks that compute something."""
    called: list[str] = []
    for network in (Generator, MaskSegmenter, type(create_embedder("dlib_resnet", pretrained=False))):
        original = network.forward

        def forward(self: Any, *inputs: Any, original: Any = original, name: str = network.__name__) -> Any:
            called.append(name)
            return original(self, *inputs)

        monkeypatch.setattr(network, "forward", forward)
    yield called
    monkeypatch.undo()


def outputs(module: Module, seed: int = 0) -> list[torch.Tensor]:
    """Mask, completed face and embedding of two faces."""
    face = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    mask = torch.zeros(2, 1, 96, 96)
    mask[:, :, 40:] = 1
    with torch.no_grad():
        return [module.deoccluder.predict_mask(face), module.deoccluder(face, mask), module.teacher(face)]


def share(module: Module, folder: Path) -> Module:
    SharedOutputsCallback(str(folder)).on_fit_start(SimpleNamespace(callbacks=[]), module)  # type: ignore[arg-type]
    return module


def test_second_run_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs(Module())
    with counted_forwards(monkeypatch) as called:
        first = outputs(share(Module(), tmp_path))
        assert sorted(called) == ["Embedder", "Generator", "MaskSegmenter"]
        called.clear()
        second = outputs(share(Module(), tmp_path))
        assert called == []
    for results in (first, second):
        assert all(torch.equal(result, known) for result, known in zip(results, expected, strict=True))


def test_other_input_or_weights_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs(share(Module(), tmp_path))
    with counted_forwards(monkeypatch) as called:
        module = share(Module(), tmp_path)
        outputs(module, seed=1)
        assert sorted(called) == ["Embedder", "Generator", "MaskSegmenter"], "of other faces"
        called.clear()
        other = share(Module(1), tmp_path)
        found = outputs(other)
        assert sorted(called) == ["Embedder", "Generator", "MaskSegmenter"], "with other weights"
    assert all(torch.equal(one, two) for one, two in zip(found, outputs(Module(1)), strict=True))


def test_autocast_is_part_of_the_key(tmp_path: Path) -> None:
    module = share(Module(), tmp_path)
    face = torch.zeros(1, 3, 96, 96)
    with torch.no_grad():
        plain = module.deoccluder.segmenter(face)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.deoccluder.segmenter(face)
    assert plain.dtype == torch.float32 and rounded.dtype == torch.bfloat16


def test_weights_and_checkpoints_are_unchanged(tmp_path: Path) -> None:
    """Sharing twice, as in a training followed by a test, does not nest."""
    module, plain = share(share(Module(), tmp_path), tmp_path), Module()
    assert list(module.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(outputs(module), outputs(plain), strict=True))
