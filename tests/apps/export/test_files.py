"""Files of every format equal torch on real faces, tell what they are, and are written whole or not at all."""

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
from deocc.data import OrlFaces
from deocc.evaluation.calibration import Calibration, covered_share
from deocc.geometry import TEMPLATES
from deocc.inference import export as writing
from deocc.inference.export import compare, describe, export
from deocc.inference.graphs import ExportNetwork, Outputs, Run
from deocc.inference.pipeline import Pipeline
from tests.apps.photos.scenes import ONE, draw_scene

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}


def read(kind: str, path: Path) -> tuple[dict[str, Any], Run]:
    """The description and a way to run the file, by each format's own package alone."""
    extra: Any = {"deocc.json": ""}
    if kind == "onnx":
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path)
        described = session.get_modelmeta().custom_metadata_map["deocc.json"]
        return json.loads(described), lambda face: Outputs(
            *map(torch.from_numpy, session.run(Outputs._fields, {"face": face.numpy()}))
        )
    if kind == "torchscript":
        script = torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=extra)
        return json.loads(extra["deocc.json"]), lambda face: Outputs(*script(face))
    program = torch.export.load(str(path), extra_files=extra).module()
    return json.loads(extra["deocc.json"]), lambda face: Outputs(*program(face))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit", "ignore::UserWarning:torch")
@pytest.mark.parametrize("kind", ["onnx", "torchscript", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_a_file_equals_the_pipeline_and_describes_itself(
    kind: str, small_folder: Path, faces: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"new/model{SUFFIXES[kind]}"
    assert main(["--to", kind, "--out", str(out), "--checkpoint", str(small_folder)]) == 0
    said = capfd.readouterr()
    assert (
        said.out.startswith("parity:   on 20 ORL faces of validation people: largest difference of completed_face ")
        and said.err == ""
    )
    assert f"exported: {out} ({kind}" in said.out and list(out.parent.iterdir()) == [out]

    described, run = read(kind, out)
    pipeline = deocc.load(small_folder)
    for batch in (faces[:1], faces[:3], faces):
        expected, found = pipeline.process_faces(batch), run(batch)
        assert 0 < found.mask.mean() < 1
        # Another runtime rounds otherwise, which moves a pixel that is at the segmenter's threshold: such a mask counts as unequal.
        parity = compare(
            Outputs(expected.completed_face, expected.mask, expected.embedding, covered_share(expected.mask)), found
        )
        assert parity.mask_agreement > 0.999 and parity.equal_masks >= len(batch) - 1
        if parity.equal_masks:
            assert max(parity.completed_face, parity.embedding) < 1e-4 and parity.covered < 1e-6
        assert torch.allclose(found.embedding.norm(dim=1), torch.ones(len(batch)), atol=1e-5)

    assert (described["format"], described["format_version"], described["to"], described["precision"]) == (
        "deocc export",
        1,
        kind,
        "fp32",
    )
    assert described["deocc_version"] == deocc.__version__ and described["face"] == pipeline.config["face"]
    assert (
        described["face"]["size"] == 64
        and described["face"]["color_order"] == "RGB"
        and described["face"]["range"] == [-1, 1]
    )
    assert described["alignments"]["arcface112"] == {
        "size": 112,
        "template": [list(point) for point in TEMPLATES["arcface"].points],
    }
    assert Calibration.from_plain(described["thresholds"]) == pipeline.thresholds
    assert described["training"] == {"training_data_hash": "0123", "data_hash": "4567"}
    assert described["licences"] == {"teacher": "CC0", "data": "credit"}
    assert described["weights_sha256"] == pipeline.config["weights_sha256"]
    assert (
        described["parity"]["faces"] == 22 and described["parity"]["embedding"] <= 1e-4 and "accuracy" not in described
    )


def test_an_onnx_file_states_its_opset_and_holds_its_weights(small: Pipeline) -> None:
    model = onnx.load_from_string(export(small, "onnx").content)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert not any(tensor.data_location for tensor in model.graph.initializer)
    assert json.loads(model.metadata_props[0].value)["opset"] == 18


def test_the_hash_of_weights_without_a_folder_is_the_folders(small: Pipeline, small_folder: Path) -> None:
    assert "weights_sha256" not in small.config
    assert describe(small)["weights_sha256"] == deocc.load(small_folder).config["weights_sha256"]
    assert describe(small)["training"] is None and "CC0" in describe(small)["licences"]["teacher"]


def described_by(content: bytes) -> dict[str, Any]:
    return dict(json.loads(onnx.load_from_string(content).metadata_props[0].value))


@pytest.mark.slow
def test_the_real_networks_equal_torch_and_in_8_bits_tell_what_that_costs(real: Pipeline) -> None:
    exported = export(real, "onnx", "int8")
    assert exported.parity.holds and exported.parity.equal_masks >= 20  # of 22, in float32
    assert len(exported.content) < 0.4 * sum(value.nbytes for value in real.network.state_dict().values())

    described = described_by(exported.content)
    accuracy = described["accuracy"]
    assert described["precision"] == "int8" and accuracy["faces_of"] == "40 ORL faces of validation people"
    assert accuracy["calibrated_on"] == "25 ORL faces of training people"
    assert exported.accuracy is not None and accuracy["eer"] == exported.accuracy.eer and accuracy["pairs"] == 40 * 39
    assert 0 < accuracy["eer_fp32"] < 1 and abs(accuracy["eer"] - accuracy["eer_fp32"]) < 0.03
    assert 0 < accuracy["similarity_mean"] < accuracy["similarity_max"] < 0.2 and accuracy["mask_agreement"] > 0.9999


def test_half_precision_tells_what_it_costs(
    small: Pipeline, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half.onnx"
    main(["--to", "onnx", "--fp16", "--out", str(out), "--checkpoint", str(small_folder)])
    described = described_by(out.read_bytes())
    assert described["precision"] == "fp16" and "calibrated_on" not in described["accuracy"]
    assert 0 < described["accuracy"]["similarity_mean"] < described["accuracy"]["similarity_max"] < 0.01
    assert described["accuracy"]["mask_agreement"] > 0.9999  # single pixels at the threshold may differ
    assert out.stat().st_size < 0.65 * sum(value.nbytes for value in small.network.state_dict().values())
    accuracy = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy: "))
    assert (
        f"EER {described['accuracy']['eer_fp32']:.2%} in float32, {described['accuracy']['eer']:.2%} in this file"
        in accuracy
    )


def test_a_file_that_differs_from_torch_is_not_written(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(ExportNetwork):
        def forward(self, face: Tensor) -> tuple[Tensor, ...]:
            outputs = Outputs(*super().forward(face))
            return (outputs.completed_face, outputs.mask, outputs.embedding + 2e-4, outputs.covered)

    monkeypatch.setattr(writing, "ExportNetwork", Off)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"before")
    with pytest.raises(
        ValueError, match=r"the onnx file does not equal torch on 20 ORL faces.*embedding 2\.0e-04.*nothing was written"
    ):
        main(["--to", "onnx", "--out", str(out), "--checkpoint", str(small_folder), "--force"])
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]


def test_photos_take_the_place_of_the_embedded_faces(
    small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dlib")
    draw_scene(ONE).save(tmp_path / "photo.png")
    monkeypatch.setattr(writing, "embedded_faces", lambda *_words: pytest.fail("asked for the embedded faces"))
    exported = export(small, "torchscript", photos=[tmp_path])
    assert exported.source == "1 photos" and exported.parity.faces == 2 and exported.parity.holds


def refused(message: str, *words: str) -> None:
    with pytest.raises((ValueError, ImportError), match=message) as caught:
        main(list(words))
    assert "\n" not in str(caught.value)


def test_words_that_make_no_sense_are_refused_before_the_model_is_read(tmp_path: Path) -> None:
    onnx_file, script_file = ("--out", str(tmp_path / "a.onnx")), ("--out", str(tmp_path / "a.pt"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").write_text("")
    refused("invalid choice: 'coreml'.*onnx.*torchscript.*torch-export", "--to", "coreml", *onnx_file)
    refused("not allowed with argument --int8", "--to", "onnx", "--int8", "--fp16", *onnx_file)
    refused(
        "--int8 is for --to onnx alone, files of torchscript are float32", "--to", "torchscript", "--int8", *script_file
    )
    refused("--fp16 is for --to onnx alone", "--to", "torch-export", "--fp16", "--out", str(tmp_path / "a.pt2"))
    refused("leave --photos out", "--to", "onnx", "--int8", "--photos", "a.jpg", *onnx_file)
    refused("the name of a torch-export file ends with .pt2", "--to", "torch-export", *script_file)
    refused("is a folder", "--to", "onnx", "--out", str(tmp_path / "folder.onnx"))
    refused("exists: give --force", "--to", "onnx", "--out", str(tmp_path / "there.onnx"))
    refused(
        "nothing can be written into .*file: choose another folder",
        "--to",
        "onnx",
        "--out",
        str(tmp_path / "file/a.onnx"),
    )
    refused("required: --to", *onnx_file)


def test_a_run_of_stage_1_is_refused(tmp_path: Path) -> None:
    torch.save({"stage": "inpainting", "state_dict": {}, "hyper_parameters": {}}, tmp_path / "a.ckpt")
    refused(
        "give a stage-2 run",
        "--to",
        "torchscript",
        "--out",
        str(tmp_path / "a.pt"),
        "--checkpoint",
        str(tmp_path / "a.ckpt"),
    )


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deocc.inference.graphs.importlib.util.find_spec", lambda name: None if name == "onnx" else name
    )
    refused(
        r'exporting to ONNX needs onnx: pip install "deocc\[onnx\]"', "--to", "onnx", "--out", str(tmp_path / "a.onnx")
    )


def test_no_face_of_a_test_person_is_looked_at(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    image = OrlFaces.image

    def watched(self: OrlFaces, index: int) -> Any:
        seen.add(int(self.person[index]))
        return image(self, index)

    monkeypatch.setattr(OrlFaces, "image", watched)
    export(small, "onnx", "int8")
    split = OrlFaces().split_of_person
    assert {split[person] for person in seen} == {"train", "val"}
