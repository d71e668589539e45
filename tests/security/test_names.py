"""Names and settings that a file chooses lead nowhere else, take no memory, and are no formulas."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import deocc
from deocc.data.images import ImageStore
from deocc.data.pairs import PairListFaces
from deocc.inference.batch import Outcome, OutcomeFile
from deocc.networks import create_embedder
from deocc.networks.deoccluder import Deoccluder
from tests.random_model import DLIB_STUDENT
from tests.security.fuzzing import within_memory

_LITTLE = 100 * 2**20


def test_names_in_a_zip_lead_nowhere_else(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as packed:
        for name in ("1.png", "../2.png", "/3.png", "a/../../4.png", "..\\5.png", "C:\\6.png"):
            packed.writestr(zipfile.ZipInfo(name), buffer.getvalue())
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    images = ImageStore(tmp_path / "faces.zip", "faces")
    assert images.names() == ["1.png", "link.png"]
    with pytest.raises(ValueError, match=r"link\.png as an image"):
        images.read("link.png")
    with pytest.raises(ValueError, match="leads out of"):
        images.read("../2.png")


_LEADING_OUT = ("../a.png", "/a.png", "x\\..\\..\\a.png", "C:a.png", "\\\\host\\a.png")


@pytest.mark.parametrize("name", [*_LEADING_OUT, "a\0.png", "a\x1b[2J.png", "a" * 300])
def test_names_in_a_list_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(f"1.png,{name},1\n")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        PairListFaces(str(tmp_path), str(tmp_path / "pairs.txt"))
    assert "\x1b" not in str(error.value) and "\0" not in str(error.value)


def test_checkpoint_with_too_large_networks(tmp_path: Path) -> None:
    state = {"average.module.position": torch.zeros(1)}
    for settings in ({"width": 400, "attention": True, "segmenter_width": 8}, {"width": "wide", "segmenter_width": 8}):
        torch.save({"stage": "inpainting", "state_dict": state, "hyper_parameters": settings}, tmp_path / "last.ckpt")
        with within_memory(_LITTLE), pytest.raises(ValueError, match="is not a complete stage-1 checkpoint"):
            Deoccluder.from_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "odd",
    [
        {"deoccluder": {"generator": {"width": 400}, "segmenter": {"width": 8}}},
        {"deoccluder": {"generator": {"width": 8, "depth": 10**9}, "segmenter": {"width": 8}}},
        {"student": {**DLIB_STUDENT, "embedding_dim": 10**6}},
        {"student": {**DLIB_STUDENT, "options": {"size": 4000}}},
        {"student": {**DLIB_STUDENT, "name": "onnx"}},
        {"student": {**DLIB_STUDENT, "name": "../../evil"}},
        {"face": {"size": 10**6}},
        {"face": {"size": "64"}},
    ],
)
def test_config_with_too_large_networks(odd: dict[str, Any], model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, **odd}))
    with within_memory(_LITTLE), pytest.raises(ValueError, match=r"cannot be rebuilt|is damaged") as error:
        deocc.load(model_folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png", "\t=a.png", "'=a.png", "''-a.png"])
def test_name_is_no_formula_in_a_table(name: str, tmp_path: Path) -> None:
    table = OutcomeFile(tmp_path / "table.csv")
    table.replace(
        name, [Outcome(name, "", 1, "x.png", {"person": name, "similarity": -0.25, "plain": "'a", "number": "-1.5e-3"})]
    )
    table.write()
    cells = (tmp_path / "table.csv").read_text().splitlines()[1].split(",")
    cells = [cell.strip('"') for cell in cells]
    assert all(not cell.startswith(("=", "+", "@", "\t")) for cell in cells)
    assert "-0.25" in cells and "-1.5e-3" in cells
    (read,) = OutcomeFile(tmp_path / "table.csv").rows(name)
    assert (read.photo, read.details["person"], read.details["plain"]) == (name, name, "'a")


def test_graph_with_weights_elsewhere(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "outside.bin").write_bytes(bytes(192 * 16))
    (tmp_path / "model").mkdir()
    for location in ("../outside.bin", str(tmp_path / "outside.bin")):
        weights = onnx.TensorProto(
            name="w", data_type=onnx.TensorProto.FLOAT, dims=[192, 4], data_location=onnx.TensorProto.EXTERNAL
        )
        weights.external_data.add(key="location", value=location)
        nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("MatMul", ["f", "w"], ["y"])]
        ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", 1, ["b", 3, 8, 8]), ("y", 1, ["b", 4]))]
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights]), ir_version=8)
        (tmp_path / "model" / "a.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match="is no readable ONNX file"):
            create_embedder("onnx", weights=str(tmp_path / "model" / "a.onnx"))
