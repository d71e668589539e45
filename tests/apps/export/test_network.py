"""What is exported computes what the pipeline computes."""

from typing import Any

import pytest
import torch

from deocc.evaluation.calibration import covered_share
from deocc.geometry import canonical_to, get_template, warp
from deocc.inference.graphs import ExportNetwork, FixedCrop
from tests.apps.export.conftest import SMALL_STUDENT, make_pipeline


@pytest.mark.parametrize("size", [64, 112, 256, 400])
@pytest.mark.parametrize("name", ["arcface", "dlib", "facenet", "canonical"])
def test_the_fixed_crop_is_the_warp(name: str, size: int) -> None:
    template, image = (
        get_template(name),
        torch.rand(2, 4, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1,
    )
    crop = FixedCrop(template, size)
    assert (crop(image) - warp(image, canonical_to(template, size), template.size)).abs().max() <= 1e-4
    coarse = {(400, "arcface"), (400, "dlib"), (400, "facenet"), (256, "arcface")}
    assert (crop.resize is not None) == ((size, name) in coarse)


@pytest.mark.parametrize("working", [16, 40, 48, 112])
def test_a_deoccluder_of_another_side_is_rebuilt(working: int, faces: torch.Tensor) -> None:
    pipeline = make_pipeline(SMALL_STUDENT, 8, 64, working)
    expected = pipeline.process_faces(faces)
    completed_face, mask, embedding, _ = ExportNetwork(pipeline.network, 64)(faces)
    assert 0 < mask.mean() < 1 and torch.allclose(mask, expected.mask, atol=1e-5)
    assert torch.allclose(completed_face, expected.completed_face, atol=1e-5)
    assert torch.allclose(embedding, expected.embedding, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student_input": "masked", "mask_channel": True},
        {"student_input": "both", "mask_channel": True, "embedding_dim": 16},
        {"student_input": "both", "embedding_dim": 7},
    ],
)
@pytest.mark.parametrize("width", [8, None])
def test_every_kind_of_student_is_rebuilt(changes: dict[str, Any], width: int | None, faces: torch.Tensor) -> None:
    pipeline = make_pipeline({**SMALL_STUDENT, **changes}, width, 64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in pipeline.network.student.parameters():
            weight.normal_(0, 0.1)  # channels that were added start at zero
    expected = pipeline.process_faces(faces)
    completed_face, mask, embedding, covered = ExportNetwork(pipeline.network, 64)(faces)
    assert torch.equal(mask, expected.mask) and torch.equal(covered, covered_share(mask))
    assert torch.allclose(completed_face, expected.completed_face, atol=1e-6)
    assert torch.allclose(embedding, expected.embedding, atol=1e-5) and embedding.std() > 0.01


@pytest.mark.parametrize("inner", [40, 48])
def test_export_resizes_as_the_deoccluder(inner: int, faces: torch.Tensor) -> None:
    """Whose networks work at a smaller side, one that divides the crop's and one that does not."""
    student = {**SMALL_STUDENT, "student_input": "both", "mask_channel": True}
    pipeline = make_pipeline(student, 8, 64)
    assert pipeline.network.deoccluder is not None
    pipeline.network.deoccluder.size = inner
    expected = pipeline.process_faces(faces)
    completed_face, mask, embedding, _ = ExportNetwork(pipeline.network, 64)(faces)
    assert (mask - expected.mask).abs().max() < 1e-4 and expected.mask.any()
    assert (completed_face - expected.completed_face).abs().max() < 1e-4
    assert torch.allclose(embedding, expected.embedding, atol=1e-4)
    pipeline.network.deoccluder.size = None
    assert (mask - pipeline.process_faces(faces).mask).abs().max() > 0.01


def test_export_takes_the_mean_over_mirror_images(faces: torch.Tensor) -> None:
    options = {"size": 64, "mirror": True}
    mirrored, plain = (make_pipeline({**SMALL_STUDENT, "options": chosen}, 8, 64) for chosen in (options, {"size": 64}))
    found = ExportNetwork(mirrored.network, 64)(faces)[2]
    assert torch.allclose(found, mirrored.process_faces(faces).embedding, atol=1e-5)
    assert not torch.allclose(found, plain.process_faces(faces).embedding, atol=1e-3)
