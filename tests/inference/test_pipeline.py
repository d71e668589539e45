from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.evaluation.thresholds import CONDITIONS, Calibration, Rates, Separation, Threshold, covered_share
from deocc.inference.model_folder import load
from deocc.inference.pipeline import Photo, Pipeline, decide

RATES = Rates(0.01, 0.2, 0.05, 100, 1000, 10)


def make_calibration() -> Calibration:
    """Limits 0.6 and 0.4 of clean faces, 0.1 less for each masked face."""
    rows: dict[str, tuple[Threshold, ...]] = {
        name: (
            Threshold(1e-1, 0.5, 0.4, RATES),
            Threshold(1e-2, 0.6 - number / 10, 0.4 - number / 10, RATES, Rates(0.03, 0.3, 0.1, 9, 90, 5)),
        )
        for number, name in enumerate(CONDITIONS)
    }
    return Calibration(rows, Separation(0.3, 0.0, 0.0), 0.25, 64, "Faces", "0")


@pytest.mark.parametrize(
    ("covered", "condition", "similarity", "decision"),
    [
        ((0.0, 0.29), "clean-clean", 0.6, "same"),
        ((0.0, 0.29), "clean-clean", 0.59, "not sure"),
        ((0.0, 0.29), "clean-clean", 0.4, "not sure"),
        ((0.0, 0.29), "clean-clean", 0.39, "different"),
        ((0.3, 0.0), "clean-masked", 0.5, "same"),
        ((0.0, 0.3), "clean-masked", 0.49, "not sure"),
        ((0.0, 0.3), "clean-masked", 0.29, "different"),
        ((0.5, 0.75), "masked-masked", 0.4, "same"),
        ((0.5, 0.75), "masked-masked", 0.19, "different"),
        ((0.76, 0.5), "masked-masked", 0.99, "not sure"),
        ((0.0, 1.0), "clean-masked", -0.9, "not sure"),
    ],
)
def test_decide(covered: tuple[float, float], condition: str, similarity: float, decision: str) -> None:
    verdict = decide(make_calibration(), similarity, covered)
    assert (verdict.condition, verdict.decision, verdict.similarity) == (condition, decision, similarity)
    assert (verdict.masked_a, verdict.masked_b) == (covered[0] >= 0.3, covered[1] >= 0.3)
    assert (verdict.visible_a, verdict.visible_b) == (1 - covered[0], 1 - covered[1])
    assert (verdict.false_accept_rate, verdict.tested_false_accept_rate) == (1e-2, 0.03)
    assert condition in verdict.reason
    assert "\n" not in verdict.reason


def test_decide_explains_its_reason() -> None:
    same = (
        "similarity 0.700 is not below 0.600, calibrated for a false-accept rate of 0.01, "
        "which accepted 0.03 of test people's pairs (clean-clean)"
    )
    assert decide(make_calibration(), 0.7, (0, 0)).reason == same
    different = "0.100 is below 0.400, which 95% of pairs of one person reach"
    assert different in decide(make_calibration(), 0.1, (0, 0)).reason
    assert "only 10% of a face is visible, 25% are needed" in decide(make_calibration(), 0.7, (0, 0.9)).reason


def test_decide_at_another_rate() -> None:
    verdict = decide(make_calibration(), 0.55, (0, 0), 0.1)
    assert (verdict.decision, verdict.same_from, verdict.false_accept_rate) == ("same", 0.5, 0.1)
    assert verdict.tested_false_accept_rate is None
    with pytest.raises(ValueError, match=r"choose one of 0\.1, 0\.01"):
        decide(make_calibration(), 0.55, (0, 0), 1e-4)


class FakeFinder:
    """Cuts the middle out of a photo instead of finding a face."""

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.names: list[str] = []

    def find(self, photo: NDArray[np.uint8], name: str) -> list[Any]:
        self.names.append(name)
        top, left = (side // 2 - self.size // 2 for side in photo.shape[:2])
        window = torch.from_numpy(photo[top : top + self.size, left : left + self.size].copy())
        return [SimpleNamespace(face=window.permute(2, 0, 1) / 127.5 - 1), None]

    def find_single(self, photo: NDArray[np.uint8], name: str) -> Any:
        return self.find(photo, name)[0]


def to_photo(face: torch.Tensor) -> NDArray[np.uint8]:
    return np.asarray(((face + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture
def pipeline(tested: Path) -> Pipeline:
    loaded = load(tested)
    loaded.finder = FakeFinder()  # type: ignore[assignment]
    return loaded


def test_pipeline_accepts_paths_images_arrays(pipeline: Pipeline, masked_faces: torch.Tensor, tmp_path: Path) -> None:
    photo, file = to_photo(masked_faces[0]), tmp_path / "a.png"
    Image.fromarray(photo).save(file)
    face = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    forms: list[Photo] = [str(file), file, Image.fromarray(photo), photo]
    assert torch.equal(pipeline.faces(forms), face.expand(4, -1, -1, -1))
    assert pipeline.finder.names == [str(file), str(file), "photo 3", "photo 4"]  # type: ignore[attr-defined]
    embedding = pipeline.embed_faces(face)
    for form in forms:
        assert torch.allclose(pipeline.embed(form), embedding, atol=1e-6)
        completed_face, mask = pipeline.complete(form)
        assert completed_face.shape == face.shape
        assert mask.shape == (1, 1, 64, 64)
        visible = (mask == 0).expand_as(face)
        assert torch.equal(completed_face[visible], face[visible])


def test_verify_uses_both_photos(pipeline: Pipeline, masked_faces: torch.Tensor) -> None:
    assert pipeline.thresholds is not None
    output = pipeline.process_faces(masked_faces[[0, 3]])
    similarity = float(output.embedding[0] @ output.embedding[1])
    covered = covered_share(output.mask).tolist()
    verdict = pipeline.verify_faces(masked_faces[0], masked_faces[3], 0.1)
    assert verdict == decide(pipeline.thresholds, similarity, (covered[0], covered[1]), 0.1)
    photo_a, photo_b = to_photo(masked_faces[0]), to_photo(masked_faces[3])
    face_a, face_b = pipeline.faces([photo_a, photo_b])
    assert pipeline.verify(photo_a, photo_b, 0.1) == pipeline.verify_faces(face_a, face_b, 0.1)
    alone = pipeline.verify(photo_a, photo_a)
    assert alone.similarity == pytest.approx(1, abs=1e-5)
    assert alone.visible_a == alone.visible_b


def test_process_faces_in_batches(pipeline: Pipeline, masked_faces: torch.Tensor) -> None:
    faces = masked_faces[[0, 1, 2, 3] * 9]
    masks = (faces.mean(1, keepdim=True) > 0).float()
    few, many = pipeline.process_faces(masked_faces, masks[:4]), pipeline.process_faces(faces, masks)
    assert len(many.mask) == 36
    for expected, found in zip(few, many, strict=True):
        assert torch.allclose(found, expected[[0, 1, 2, 3] * 9], atol=1e-5)


def test_pipeline_of_bad_input(pipeline: Pipeline, masked_faces: torch.Tensor) -> None:
    for wrong in (masked_faces[0], masked_faces[:, :, :32, :32], masked_faces[:0], masked_faces[:, :1]):
        with pytest.raises(ValueError, match=r"expected faces of shape \(B, 3, 64, 64\)"):
            pipeline.embed_faces(wrong)
    with pytest.raises(ValueError, match="expected masks"):
        pipeline.complete_faces(masked_faces, torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="crops of 112 pixels"):
        pipeline.finder = FakeFinder(112)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="no photo given"):
        pipeline.embed([])
