"""The GPU benchmark at tiny sizes on the CPU, and its calculations."""

import json
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from bench import gpu, gpu_training
from bench.gpu_kernels import compiled_piece, median_seconds, peak_flops
from bench.gpu_training import at_paper_size, count_operations, deviation
from bench.kernels import embeddings, value_and_gradient
from deocc.losses import distances, triplet_relation_loss

CPU = torch.device("cpu")


@pytest.mark.slow
def test_everything_runs_on_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--small", "--output", str(output)])
    figures, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert figures["device"] == "cpu"
    assert [len(figures[part]) for part in ("renderer", "losses", "steps")] == [1, 2, 6]
    for row in figures["renderer"] + figures["losses"] + figures["steps"]:
        assert row["ours"] > 0
        assert row["what"] in printed
    assert figures["losses"][1]["details"]["value, relative difference"] < 1e-5
    for exact, half, compiled in (figures["steps"][:3], figures["steps"][3:]):
        assert exact["details"]["operations a step"] > 1e6
        assert "model-FLOP utilisation" not in exact["details"], "the peak of a CPU is unknown"
        assert exact["details"]["largest loss deviation"] == 0
        assert 0 < half["details"]["first loss deviation"] < 0.02
        assert compiled["details"]["first loss deviation"] == pytest.approx(
            half["details"]["first loss deviation"], abs=1e-3
        )


def test_other_parts_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    for device, kept in (("cpu", True), ("another", False)):
        output.write_text(json.dumps({"device": device, "losses": ["as they were"]}))
        gpu.main(["--device", "cpu", "--small", "--parts", "renderer", "--output", str(output)])
        assert ("losses" in json.loads(output.read_text())) is kept


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --small" in capsys.readouterr().err


def test_compiled_piece_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    value, slope = value_and_gradient(triplet_relation_loss, *embeddings(12))
    piece = Mock(side_effect=compiled_piece("eager"))
    monkeypatch.setattr(distances, "piece", piece)
    found, found_slope = value_and_gradient(triplet_relation_loss, *embeddings(12))
    assert piece.called
    assert found == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(found_slope, slope)


def test_operations_of_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = gpu.small().settings[0]
    whole = count_operations(CPU, setting)
    count = gpu_training.build

    def deeper(setting: object) -> nn.Module:
        module = count(setting)  # type: ignore[arg-type]
        module.segmenter = nn.Sequential(cast(nn.Module, module.segmenter), nn.Conv2d(1, 1, 1, bias=False))
        return module

    monkeypatch.setattr(gpu_training, "build", deeper)
    pixels = 4 * 64 * 64
    assert count_operations(CPU, setting) - whole == 3 * 2 * pixels  # the output, and the gradients of weight and input


def test_deviation_is_maximum() -> None:
    assert deviation([1.0, 2.2, 3.0], [1.0, 2.0, 4.0]) == pytest.approx(0.25)


def test_paper_size() -> None:
    inpaint, distill = at_paper_size("inpaint"), at_paper_size("distill")
    assert (inpaint.data["size"], inpaint.data["batch_size"], inpaint.model["width"]) == (256, 16, 64)
    assert (distill.data["size"], distill.data["batch_size"]) == (256, 128)


@pytest.mark.parametrize(
    ("name", "tera"), [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA A100-SXM4-80GB", 312.0)]
)
def test_peak_flops(name: str, tera: float) -> None:
    assert peak_flops(name, "bf16") == pytest.approx(tera * 1e12)
    assert peak_flops("NVIDIA Something", "bf16") is None


def test_median_seconds_warm_up() -> None:
    calls: list[int] = []
    assert median_seconds(CPU, lambda: calls.append(1), 3) >= 0
    assert len(calls) == 4
