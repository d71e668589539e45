"""The page shows what the pipeline, the renderer and the generator compute."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from deocc.commands.demo_analysis import EXAMPLES, NO_MASK, Analysis, Analyst, OrlGallery, attention_map, render_html
from deocc.data import OrlFaces
from deocc.geometry import TEMPLATES, similarity_transform, warp
from deocc.inference.faces import PhotoFace
from deocc.inference.pipeline import Pipeline
from deocc.masking import list_kinds, render
from deocc.networks import Deoccluder

Faces = tuple[PhotoFace, PhotoFace]


def as_picture(face: torch.Tensor) -> NDArray[np.uint8]:
    return np.asarray(((face + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def first_image(person: int) -> torch.Tensor:
    """Return the canonical crop of a person's first image, computed independently of the command."""
    index, orl = (person - 1) * 10, OrlFaces()
    photo = torch.from_numpy(orl.image(index).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    points = torch.from_numpy(orl.landmarks[index]).float()
    return warp(photo, similarity_transform(points, TEMPLATES["canonical"].tensor(64)), 64)[0].clamp(-1, 1)


def test_panels_match_pipeline(pipeline: Pipeline, faces: Faces) -> None:
    first = faces[0]
    masked, _ = render(first.face[None], first.landmarks[None], "scarf", torch.tensor([5]))
    output = pipeline.process_faces(masked)
    shown = {panel.title: panel.picture for panel in Analyst(pipeline, None).analyse(first, "scarf", 5).panels}
    assert list(shown) == ["Clean", "Masked", "Predicted mask", "Completed", "Attention"]
    expected = [first.face, masked[0], (output.mask[0] * 2 - 1).expand(3, -1, -1), output.completed_face[0]]
    for title, face in zip(shown, expected, strict=False):
        picture = shown[title]
        assert picture is not None and np.abs(picture.astype(int) - as_picture(face).astype(int)).max() <= 1


def test_pair_similarities_match_pipeline(pipeline: Pipeline, faces: Faces) -> None:
    first, second = faces
    masked = render(first.face[None], first.landmarks[None], "cloth", torch.tensor([1]))[0]
    other = pipeline.embed_faces(second.face[None])[0]
    bare = pipeline.process_faces(masked, torch.zeros(1, 1, 64, 64)).embedding[0]
    clean, completed = pipeline.embed_faces(torch.stack([first.face, masked[0]]))
    expected = [float(embedding @ other) for embedding in (clean, bare, completed)]
    pair = Analyst(pipeline, None).analyse(first, "cloth", 1, second).pair
    assert [comparison.similarity for comparison in pair] == pytest.approx(expected, abs=1e-5)
    shown, verdict = pair[2].verdict, pipeline.verify_faces(masked[0], second.face)
    assert pair[1].verdict is None and shown is not None
    assert (shown.decision, shown.condition) == (verdict.decision, verdict.condition)


def test_masked_photo_is_not_changed(pipeline: Pipeline, faces: Faces) -> None:
    masked = render(faces[0].face[None], faces[0].landmarks[None], "box", torch.tensor([1]))[0][0]
    given = PhotoFace(masked, faces[0].landmarks, faces[0].matrix, faces[0].box, 1.0, "dlib")
    analysis = Analyst(pipeline, None).analyse(given, NO_MASK, 0, faces[1])
    assert [panel.title for panel in analysis.panels] == ["Photo", "Predicted mask", "Completed", "Attention"]
    assert np.array_equal(np.asarray(analysis.panels[0].picture), as_picture(masked))
    assert [comparison.title for comparison in analysis.pair] == ["As it is, not completed", "Completed"]
    assert analysis.matches == []


def test_search_is_exhaustive(pipeline: Pipeline, gallery: OrlGallery, faces: Faces) -> None:
    embedding = pipeline.embed_faces(faces[0].face[None])[0]
    analysis = Analyst(pipeline, gallery).analyse(faces[0], NO_MASK, 0)
    assert analysis.gallery is gallery and len(gallery) == 40 and "AT&T" in gallery.credit
    one_by_one = {
        person: float(pipeline.embed_faces(first_image(person)[None])[0] @ embedding) for person in range(1, 41)
    }
    found = [match.similarity for match in analysis.matches]
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx(sorted(one_by_one.values(), reverse=True)[:5], abs=5e-4)
    people = [int(match.title.removeprefix("ORL person ")) for match in analysis.matches]
    assert len({*people}) == 5
    for person, match in zip(people, analysis.matches, strict=True):
        assert match.similarity == pytest.approx(one_by_one[person], abs=5e-4)
        assert np.array_equal(np.asarray(match.picture), OrlFaces().image((person - 1) * 10))


def test_gallery_face_finds_itself(pipeline: Pipeline, gallery: OrlGallery, faces: Faces) -> None:
    for person in (1, 18, 40):
        given = replace(faces[0], face=first_image(person))
        match = Analyst(pipeline, gallery).analyse(given, NO_MASK, 0).matches[0]
        assert match.title == f"ORL person {person}" and match.similarity == pytest.approx(1, abs=1e-4)


def test_examples_are_validation_people() -> None:
    splits = OrlFaces().split_of_identity
    for first, second, kind, _ in EXAMPLES.values():
        for person, image in (first, second):
            assert splits[person - 1] == "val" and 2 <= image <= 10
        assert kind in list_kinds()


def draw_face(size: int) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_deoccluder(size: int | None = None, attention: bool = True) -> Deoccluder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Deoccluder({"width": 8, "depth": 1, "attention": attention}, {"width": 8}, size)


def test_attention_map_sums_covered_patches() -> None:
    deoccluder = make_deoccluder()
    face, mask = draw_face(64), torch.zeros(1, 64, 64)
    mask[:, 33:50, 10:40] = 1
    with torch.no_grad():
        weights = deoccluder.generator.attend(face[None], mask[None])[0].numpy()
    coarse = np.zeros((8, 8), np.float32)
    for row in range(8):
        for column in range(8):
            if mask[0, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].any():
                coarse += weights[row, column]
    expected = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_LINEAR)
    heat = attention_map(deoccluder, face, mask)
    assert heat is not None and np.allclose(heat.numpy(), expected / expected.max(), atol=1e-5)
    assert float(heat.max()) == 1 and float(heat[44, 20]) == 0  # the middle of the mask is not visible


def test_attention_map_at_working_size() -> None:
    deoccluder = make_deoccluder(size=32)
    face, mask = draw_face(32), torch.zeros(1, 32, 32)
    mask[:, 16:] = 1
    larger = [F.interpolate(image[None], (64, 64), mode="nearest")[0] for image in (face, mask)]
    small, large = attention_map(deoccluder, face, mask), attention_map(deoccluder, *larger)
    assert small is not None and large is not None and large.shape == (64, 64)
    assert (F.avg_pool2d(large[None], 2)[0] - small).abs().mean() < 0.1


def test_attention_map_none() -> None:
    face, covered = torch.zeros(3, 64, 64), torch.ones(1, 64, 64)
    assert attention_map(make_deoccluder(), face, covered * 0) is None
    assert attention_map(make_deoccluder(), face, covered) is None


def test_no_panel_without_attention(pipeline: Pipeline, faces: Faces) -> None:
    pipeline.network.deoccluder = make_deoccluder(attention=False)
    panel = Analyst(pipeline, None).analyse(faces[0], NO_MASK, 0).panels[-1]
    assert panel.picture is None and panel.caption == "this model has no attention branch"


def result_html(analysis: Analysis, *notes: str) -> str:
    return render_html("demo_result.html.j2", analysis=analysis, notes=notes)


def test_no_decision_without_thresholds(pipeline: Pipeline, gallery: OrlGallery, faces: Faces) -> None:
    pipeline.thresholds = None
    analysis = Analyst(pipeline, gallery).analyse(faces[0], "n95", 0, faces[1])
    assert all(comparison.verdict is None for comparison in analysis.pair)
    html = result_html(analysis)
    assert "deocc test" in html and "Same person" not in html and "deocc-mark" not in html


def test_html_shows_verdict_and_escapes_notes(pipeline: Pipeline, faces: Faces) -> None:
    analysis = Analyst(pipeline, None).analyse(faces[0], "n95", 0, faces[0])
    html = result_html(analysis, "<script>alert(1)</script>")
    verdict = analysis.pair[-1].verdict
    words = {"same": "Same person", "different": "Different people", "not sure": "Not sure"}
    assert verdict is not None and words[verdict.decision] in html
    assert f"left: {verdict.same_from:.1%}" in html and f"left: {verdict.different_below:.1%}" in html
    assert "<script>" not in html and html.count("data:image/png;base64,") == 5
