"""The kept de-occluder of a half completes faces as the runs do, within half precision."""

from pathlib import Path

import pytest
import torch

from bench.lfw_deoccluder import main
from deocc.inference.model_folder import pretrained_folder
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.generator import Generator
from deocc.networks.segmenter import MaskSegmenter


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Checkpoints with the content that both stages save, with random weights."""
    torch.manual_seed(0)
    generator, segmenter = Generator(width=8), MaskSegmenter(width=8)
    segmenter.gate.fill_(0.0123456)
    parts = {
        "inpaint": ("inpainting", generator, {"width": 8, "attention": True, "segmenter_width": None}),
        "segment": ("segmentation", segmenter, {"width": 8}),
    }
    for name, (stage, network, settings) in parts.items():
        file = tmp_path / "half" / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        state = {f"average.module.{key}": value for key, value in network.state_dict().items()}
        torch.save({"stage": stage, "face_size": 64, "hyper_parameters": settings, "state_dict": state}, file)
        (file.parent.parent / "config.yaml").touch()
    return tmp_path / "half"


def test_pack(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.ckpt"
    assert main([str(half), str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    runs = [half / name / "checkpoints" / "last.ckpt" for name in ("inpaint", "segment")]
    expected, kept = Deoccluder.from_checkpoint(*runs), Deoccluder.from_checkpoint(file)
    assert kept.config == expected.config and kept.size == 64
    assert float(kept.segmenter.gate) == float(expected.segmenter.gate), "not rounded"
    face, mask = torch.rand(2, 3, 64, 64) * 2 - 1, torch.ones(2, 1, 64, 64)
    torch.testing.assert_close(kept(face, mask), expected(face, mask), atol=0.02, rtol=0)
    assert not torch.equal(kept(face, mask), expected(face, mask))


def test_pack_of_model_folder(tmp_path: Path) -> None:
    file = tmp_path / "kept.ckpt"
    assert main([str(pretrained_folder()), str(file)]) == 0
    expected, kept = Deoccluder.from_checkpoint(pretrained_folder()), Deoccluder.from_checkpoint(file)
    assert kept.config == expected.config
    for name, value in expected.state_dict().items():
        assert torch.equal(kept.state_dict()[name], value), "a model folder holds kernels in half precision already"


def test_missing_run(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (half / "segment/checkpoints/last.ckpt").unlink()
    with pytest.raises(SystemExit) as end:
        main([str(half), str(tmp_path / "kept.ckpt")])
    assert end.value.code == 2 and "segment" in capsys.readouterr().err
    assert not (tmp_path / "kept.ckpt").exists()
