"""Runs over the same images compute the outputs of frozen networks once, and get the same results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deocc.callbacks import SharedOutputsCallback
from deocc.modules import InpaintingModule
from deocc.networks import Deoccluder, Generator, create_embedder
from deocc.networks.segmenter import MaskSegmenter
from tests.modules.training import SMALL, export_onnx, fit


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


def share(module: Any, folder: Path) -> Any:
    SharedOutputsCallback(str(folder)).on_fit_start(SimpleNamespace(callbacks=[]), module)  # type: ignore[arg-type]
    return module


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_second_run_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs(Module())
    assert list(share(Module(), tmp_path).state_dict()) == list(Module().state_dict()), "checkpoints are unchanged"
    with counted_forwards(monkeypatch) as called:
        first = outputs(share(Module(), tmp_path))
        assert sorted(called) == ["Embedder", "Generator", "MaskSegmenter"]
        called.clear()
        second = outputs(share(Module(), tmp_path))
        assert called == []
    assert_equal(first, expected)
    assert_equal(second, expected)


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
    assert_equal(found, outputs(Module(1)))


def test_autocast_is_part_of_the_key(tmp_path: Path) -> None:
    module = share(Module(), tmp_path)
    face = torch.zeros(1, 3, 96, 96)
    with torch.no_grad():
        plain = module.deoccluder.segmenter(face)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.deoccluder.segmenter(face)
    assert plain.dtype == torch.float32 and rounded.dtype == torch.bfloat16


def test_sharing_twice_does_not_nest(tmp_path: Path) -> None:
    """As in a training followed by a test."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    outputs(share(Module(), once))
    outputs(share(share(Module(), once), twice))
    assert {file.name for file in once.rglob("*.pt")} == {file.name for file in twice.rglob("*.pt")}


def test_stage1_computes_its_teacher(tmp_path: Path) -> None:
    """It needs feature maps, which hooks of the teacher collect, and gradients through the teacher."""
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        module = InpaintingModule(**SMALL)
        fit(module, tmp_path, steps=1, callbacks=[SharedOutputsCallback(str(tmp_path))])
        states.append(module.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_folder_shares_nothing(tmp_path: Path) -> None:
    """A test of a run after `deocc ablate` has deleted the folder."""
    module = share(Module(), tmp_path / "gone")
    assert_equal(outputs(module), outputs(Module()))
    assert not (tmp_path / "gone").exists()


def test_damaged_file_is_computed_again(tmp_path: Path) -> None:
    expected = outputs(share(Module(), tmp_path))
    for file in tmp_path.rglob("*.pt"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read .*: it is computed again"):
        found = outputs(share(Module(), tmp_path))
    assert_equal(found, expected)
    assert min(file.stat().st_size for file in tmp_path.rglob("*.pt")) > 0


def test_full_disk_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.warns(UserWarning, match=r"outputs are not shared .*No space left.*: free space for"):
        found = outputs(share(Module(), tmp_path))
    assert_equal(found, outputs(Module()))


class Scaled(torch.nn.Module):
    """Multiplies the mean of an image by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.factor * image.mean((2, 3))


def test_onnx_networks_are_told_apart(tmp_path: Path) -> None:
    """Their weights are no parameters."""
    found = []
    (tmp_path / "shared").mkdir()
    for factor in (1.0, -2.0):
        file = export_onnx(tmp_path / f"{factor}.onnx", Scaled(factor))
        module: Any = SimpleNamespace(teacher=create_embedder("onnx", file, color="rgb"), deoccluder=None)
        found.append(share(module, tmp_path / "shared").teacher(torch.ones(1, 3, 64, 64)))
    torch.testing.assert_close(found[1], -2 * found[0])
