"""A message names the cause that it has: too few people, a type of input, a missing package."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from torch import nn

from deocc import cli
from deocc.callbacks.loggers import place_loggers
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.report import summary_table
from deocc.evaluation.results import build_results
from deocc.networks import create_embedder


def table_of(identity: list[int]) -> str:
    """The table of a test with one image for each of the identities."""
    number = len(identity)
    embedding = nn.functional.normalize(torch.randn(number, 8, generator=torch.Generator().manual_seed(0)))
    ids = {"identity": torch.tensor(identity), "index": torch.arange(number), "seed": torch.arange(number)}
    gallery, probe = (EmbeddingSet(embedding, kind=torch.full((number,), kind), **ids) for kind in (-1, 0))
    rows = {"teacher_clean": gallery, "student_clean": gallery, "student": probe, "teacher_masked": probe}
    return summary_table(build_results(rows, {}, ["box"], {}).content)


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ([0, 1, 2, 3], "n/a: clean-masked has no pairs of one person"),
        ([0, 0, 0], "n/a: clean-masked has no pairs of two people"),
        ([0, 0], "n/a: clean-clean has no pairs of two people"),
        ([0, 0, 1, 1], "n/a: clean-masked, TAR@1e-2: not enough negatives: 8, 100 needed"),
    ],
    ids=["one image a person", "one person", "two images", "few people"],
)
def test_missing_figures_have_a_reason(identity: list[int], reason: str) -> None:
    lines = [line for line in table_of(identity).splitlines() if line.startswith("n/a: ")]
    assert reason in lines and len(lines) == len(set(lines))


@pytest.mark.parametrize(("dtype", "fine"), [(torch.float16, True), (torch.float64, True), (torch.uint8, False)])
def test_onnx_input_types(dtype: torch.dtype, fine: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kinds = {torch.float16: "FLOAT16", torch.float64: "DOUBLE", torch.uint8: "UINT8"}
    kind, shape = getattr(onnx.TensorProto, kinds[dtype]), ["batch", 3, 4, 4]
    image, flat = onnx.helper.make_tensor_value_info("image", kind, shape), onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["image"], ["out"])], "net", [image], [flat("out", kind, ["batch", 48])]
    )
    versions = {"ir_version": 8, "opset_imports": [onnx.helper.make_opsetid("", 13)]}
    onnx.save(onnx.helper.make_model(graph, **versions), tmp_path / "net.onnx")
    if fine:
        crop = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
        embedding = create_embedder("onnx", weights=str(tmp_path / "net.onnx")).embed_crop(crop)
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding, crop.flatten(1), atol=2e-3, rtol=0)
    else:
        with pytest.raises(ValueError, match=r"net\.onnx takes a tensor\(uint8\), expected one of tensor\(float\), "):
            create_embedder("onnx", weights=str(tmp_path / "net.onnx"))


def test_missing_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    class_path, init_args = "pytorch_lightning.loggers.TensorBoardLogger", Namespace()  # type: ignore[no-untyped-call]
    logger: Any = Namespace(class_path=class_path, init_args=init_args)  # type: ignore[no-untyped-call]
    trainer: Any = Namespace(logger=[logger])  # type: ignore[no-untyped-call]
    with pytest.raises(
        ImportError, match=r'^the logger TensorBoardLogger needs .*: pip install "deocc\[tensorboard\]"$'
    ):
        place_loggers(trainer, tmp_path, "", tmp_path, "deocc.modules.InpaintingModule")


def test_print_config_is_yaml_only(stage1: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(stage1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["test", "--print_config"])
    printed = capsys.readouterr()
    assert printed.out.startswith("#") or printed.out.split(":")[0].isidentifier(), printed.out[:100]
    assert "runs/mine" in printed.err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_predict(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", option])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "--out DIR" in out and "--checkpoint RUN" in out
    assert len(out.splitlines()) < 60 and sys.argv
