import io
import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

import deocc
from deocc.commands.export import main
from deocc.evaluation.thresholds import Calibration
from deocc.geometry import TEMPLATES
from deocc.inference import export as writing
from deocc.inference.export import compare, embedded_faces
from deocc.inference.export_formats import Run
from deocc.inference.network import ExportNetwork, FaceOutput

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}


def read(kind: str, path: Path) -> tuple[dict[str, Any], Run]:
    """The description and a function that runs the file, with each format's own package only."""
    extra: Any = {"deocc.json": ""}
    if kind == "onnx":
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path)
        described = session.get_modelmeta().custom_metadata_map["deocc.json"]

        def run(face: Tensor) -> FaceOutput:
            return FaceOutput(*map(torch.from_numpy, session.run(FaceOutput._fields, {"face": face.numpy()})))

        return json.loads(described), run
    if kind == "torchscript":
        script = torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=extra)
        return json.loads(extra["deocc.json"]), lambda face: FaceOutput(*script(face))
    program = torch.export.load(str(path), extra_files=extra).module()
    return json.loads(extra["deocc.json"]), lambda face: FaceOutput(*program(face))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit", "ignore::UserWarning:torch")
@pytest.mark.parametrize("kind", ["onnx", "torchscript", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_export_equals_the_pipeline(
    kind: str, small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"new/model{SUFFIXES[kind]}"
    assert main(["--to", kind, "--out", str(out), "--checkpoint", str(small_folder)]) == 0
    told = capfd.readouterr()
    start = "parity:   on 20 ORL faces of validation people: largest difference of completed_face "
    assert told.out.startswith(start)
    assert told.err == ""
    assert f"exported: {out} ({kind}" in told.out
    assert list(out.parent.iterdir()) == [out]

    described, run = read(kind, out)
    pipeline = deocc.load(small_folder)
    faces = embedded_faces(pipeline, "val", 8).masked_face
    for batch in (faces[:1], faces[:3], faces):
        expected, found = pipeline.process_faces(batch), run(batch)
        assert 0 < found.mask.mean() < 1
        # Rounding may move a pixel across the segmenter's threshold: such a mask counts as unequal.
        parity = compare(expected, found)
        assert parity.mask_agreement > 0.999
        assert parity.equal_masks >= len(batch) - 1
        if parity.equal_masks:
            assert max(parity.completed_face, parity.embedding) < 1e-4
            assert parity.covered < 1e-6
        assert torch.allclose(found.embedding.norm(dim=1), torch.ones(len(batch)), atol=1e-5)

    expected_entries = {
        "format": "deocc export",
        "format_version": 1,
        "to": kind,
        "precision": "fp32",
        "deocc_version": deocc.__version__,
        "face": pipeline.config["face"],
        "training": {"training_data_hash": "0123", "data_hash": "4567"},
        "licences": {"teacher": "CC0", "data": "credit"},
        "weights_sha256": pipeline.config["weights_sha256"],
    }
    assert {name: described[name] for name in expected_entries} == expected_entries
    face = described["face"]
    assert (face["size"], face["color_order"], face["range"]) == (64, "RGB", [-1, 1])
    template = [list(point) for point in TEMPLATES["arcface"].points]
    assert described["alignments"]["arcface112"] == {"size": 112, "template": template}
    assert Calibration.from_plain(described["thresholds"]) == pipeline.thresholds
    assert described["parity"]["faces"] == 22
    assert described["parity"]["embedding"] <= 1e-4
    assert "accuracy" not in described


def test_export_to_fp16_measures_accuracy(
    small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half.onnx"
    main(["--to", "onnx", "--fp16", "--out", str(out), "--checkpoint", str(small_folder)])
    described = json.loads(onnx.load(out).metadata_props[0].value)
    accuracy = described["accuracy"]
    assert described["precision"] == "fp16"
    assert "calibrated_on" not in accuracy
    assert 0 < accuracy["similarity_mean"] < accuracy["similarity_max"] < 0.01
    assert accuracy["mask_agreement"] > 0.9999  # single pixels at the threshold may differ
    weights = deocc.load(small_folder).network.state_dict().values()
    assert out.stat().st_size < 0.65 * sum(value.nbytes for value in weights)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy: "))
    assert f"EER {accuracy['eer_fp32']:.2%} in float32, {accuracy['eer']:.2%} in this file" in line


def test_export_writes_nothing_without_parity(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(ExportNetwork):
        def forward(self, face: Tensor) -> tuple[Tensor, ...]:
            outputs = FaceOutput(*super().forward(face))
            return (outputs.completed_face, outputs.mask, outputs.embedding + 2e-4, outputs.covered)

    monkeypatch.setattr(writing, "ExportNetwork", Wrong)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"before")
    message = r"the onnx file does not equal torch on 20 ORL faces.*embedding 2\.0e-04.*nothing was written"
    with pytest.raises(ValueError, match=message):
        main(["--to", "onnx", "--out", str(out), "--checkpoint", str(small_folder), "--force"])
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--to coreml --out a.onnx", "invalid choice: 'coreml'.*onnx.*torchscript.*torch-export"),
        ("--to onnx --int8 --fp16 --out a.onnx", "not allowed with argument --int8"),
        ("--to torchscript --int8 --out a.pt", "--int8 is for --to onnx alone, files of torchscript are float32"),
        ("--to torch-export --fp16 --out a.pt2", "--fp16 is for --to onnx alone"),
        ("--to onnx --int8 --photos a.jpg --out a.onnx", "leave --photos out"),
        ("--to torch-export --out a.pt", "with --to torch-export, give a name that ends with .pt2"),
        ("--to onnx --out folder.onnx", "is a folder"),
        ("--to onnx --out there.onnx", "exists: give --force"),
        ("--to onnx --out file/a.onnx", "nothing can be written into .*file: choose another folder"),
        ("--out a.onnx", "required: --to"),
        ("--to onnx --out a.onnx --device cpu", "unrecognized arguments: --device cpu"),
        ("--to torchscript --out a.pt --checkpoint stage1.ckpt", "give a stage-2 run"),
    ],
)
def test_export_refuses(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder.onnx").mkdir()
    Path("there.onnx").write_text("")
    torch.save({"stage": "inpainting", "state_dict": {}, "hyper_parameters": {}}, "stage1.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        main(arguments.split())
    assert "\n" not in str(caught.value)


def test_export_names_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = "deocc.inference.export_formats.importlib.util.find_spec"
    monkeypatch.setattr(find_spec, lambda name: None if name == "onnx" else name)
    with pytest.raises(ImportError, match=r'exporting to ONNX needs onnx: pip install "deocc\[onnx\]"'):
        main(["--to", "onnx", "--out", str(tmp_path / "a.onnx")])
