from typing import Any

import pytest
import torch

from deocc.evaluation.thresholds import covered_share
from deocc.geometry import canonical_to, get_template, warp
from deocc.inference.network import ExportNetwork, FixedCrop
from tests.random_model import SMALL_STUDENT, make_pipeline


@pytest.mark.parametrize("size", [64, 112, 256, 400])
@pytest.mark.parametrize("name", ["arcface", "dlib", "facenet", "canonical"])
def test_fixed_crop_equals_warp(name: str, size: int) -> None:
    template = get_template(name)
    image = torch.rand(2, 4, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    crop = FixedCrop(template, size)
    assert (crop(image) - warp(image, canonical_to(template, size), template.size)).abs().max() <= 1e-4
    coarse = {(400, "arcface"), (400, "dlib"), (400, "facenet"), (256, "arcface")}
    assert (crop.resize is not None) == ((size, name) in coarse)


@pytest.mark.parametrize("deoccluder_size", [16, 40, 48, 112])
def test_network_with_another_deoccluder_size(deoccluder_size: int, faces: torch.Tensor) -> None:
    student = {**SMALL_STUDENT, "student_input": "both", "mask_channel": True}
    pipeline = make_pipeline(student, 8, 64, deoccluder_size)
    expected = pipeline.process_faces(faces)
    completed_face, mask, embedding, _ = ExportNetwork(pipeline.network, 64)(faces)
    assert 0 < mask.mean() < 1
    assert torch.allclose(mask, expected.mask, atol=1e-5)
    assert torch.allclose(completed_face, expected.completed_face, atol=1e-5)
    assert torch.allclose(embedding, expected.embedding, atol=1e-5)
    if deoccluder_size == 40:
        assert pipeline.network.deoccluder is not None
        pipeline.network.deoccluder.size = None
        assert (mask - pipeline.process_faces(faces).mask).abs().max() > 0.01


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
def test_network_with_every_kind_of_student(changes: dict[str, Any], width: int | None, faces: torch.Tensor) -> None:
    pipeline = make_pipeline({**SMALL_STUDENT, **changes}, width, 64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in pipeline.network.student.parameters():
            weight.normal_(0, 0.1)  # added channels start at zero
    expected = pipeline.process_faces(faces)
    completed_face, mask, embedding, covered = ExportNetwork(pipeline.network, 64)(faces)
    assert torch.equal(mask, expected.mask)
    assert torch.equal(covered, covered_share(mask))
    assert torch.allclose(completed_face, expected.completed_face, atol=1e-6)
    assert torch.allclose(embedding, expected.embedding, atol=1e-5)
    assert embedding.std() > 0.01


def test_network_averages_mirror_images(faces: torch.Tensor) -> None:
    mirrored = make_pipeline({**SMALL_STUDENT, "options": {"size": 64, "mirror": True}}, 8, 64)
    plain = make_pipeline(SMALL_STUDENT, 8, 64)
    found = ExportNetwork(mirrored.network, 64)(faces)[2]
    assert torch.allclose(found, mirrored.process_faces(faces).embedding, atol=1e-5)
    assert not torch.allclose(found, plain.process_faces(faces).embedding, atol=1e-3)
