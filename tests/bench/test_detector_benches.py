"""Benchmarks of the detectors and of predicted masks on a few ORL faces."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench import detectors, found_faces, masked_photos, mtcnn_scores
from bench.mtcnn_training import SIDE, Photos
from deocc.data import LfwFaces, OrlFaces
from deocc.detection.detector import Detection
from deocc.detection.mtcnn import WEIGHTS_FILE, MtcnnDetector
from deocc.geometry import TEMPLATES
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.pipeline import Pipeline
from tests.fake_sets.faces import save_face
from tests.fake_sets.lfw import write_lfw
from tests.real_model import model, pipeline  # noqa: F401


def _photos(folder: Path) -> Path:
    """Two faces and a photo without one."""
    for person in (0, 9):
        save_face(folder / f"{person}.png", person, 0, 200, 200)
    Image.new("RGB", (60, 60), (127, 127, 127)).save(folder / "empty.png")
    return folder


def test_detectors_on_orl(capsys: pytest.CaptureFixture[str]) -> None:
    detectors.main(["--images", "2", "--detectors", "mtcnn"])
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "mtcnn" in line]
    assert [line[1].strip() for line in lines] == ["bare", "masked"]
    assert lines[0][2].strip() == "2 of 2"
    assert all(float(error) < 0.1 for error in lines[0][4].split())


def test_detectors_on_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detectors.main(["--photos", str(_photos(tmp_path)), "--detectors", "mtcnn"])
    (line,) = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "mtcnn" in line]
    assert [cell.strip() for cell in line[1:4]] == ["3", "2", "66.7 %"]


def test_errors_in_eye_distances() -> None:
    truth = np.array([[0.0, 0], [40, 0], [20, 20], [5, 40], [35, 40]])
    found = truth + np.array([[4.0, 0], [0, 4], [0, 8], [12, 0], [0, -12]])
    assert detectors.errors([found, None, found], [truth, truth, None]) == ["0.100", "0.200", "0.300"]
    assert detectors.errors([None], [truth]) == ["", "", ""]


def _cover(mask_from: float) -> Tensor:
    """Return a mask of the lower part of a crop, from a share of its height."""
    mask = torch.zeros(112, 112)
    mask[round(112 * mask_from) :] = 1
    return mask


def test_masked_photos_shares(
    pipeline: Pipeline,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One mask covers the lower half, the other the whole face."""
    masks = iter([_cover(0.5), _cover(0.0)])
    process = Pipeline.process_faces

    def cover(self: Pipeline, face: Tensor, mask: Tensor | None = None) -> object:
        return process(self, face)._replace(mask=next(masks)[None, None])

    monkeypatch.setattr(Pipeline, "process_faces", cover)
    monkeypatch.setattr("deocc.load", lambda path: pipeline, raising=False)
    sheet = tmp_path / "sheet.png"
    masked_photos.main(["--photos", str(_photos(tmp_path / "photos")), "--model", "some/model", "--sheet", str(sheet)])
    shares = [line.split(": ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines()[:3]]
    assert shares == ["2 of 3", "2 of 2", "1 of 2"]
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (128, 12 * 128, 3)
    assert (pixels[:, :256] == (0, 255, 0)).all(-1).any() and not pixels[:, 256:].any()


def test_masked_face_covered() -> None:
    landmarks = TEMPLATES["canonical"].tensor(112)
    face = PhotoFace(torch.zeros(3, 112, 112), landmarks, torch.eye(2, 3), np.zeros(4), 1.0, "mtcnn")
    mask = torch.zeros(112, 112)
    column, row = landmarks[2].round().int().tolist()
    mask[row, column] = 0.5
    assert masked_photos.MaskedFace(face, mask).covered.tolist() == [False, False, True, False, False]


def test_masked_photos_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        masked_photos.main(["--photos", str(tmp_path)])
    assert "no photo in" in capsys.readouterr().err


def test_turned_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detectors.main(["--photos", str(_photos(tmp_path)), "--detectors", "mtcnn", "--turned"])
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "mtcnn" in line]
    assert [[cell.strip() for cell in line[1:]] for line in lines] == [
        [str(turn), "3", "2", "2"] for turn in (0, 90, 180, 270)
    ]


def test_found_faces_are_cut_by_detector(pipeline: Pipeline) -> None:  # noqa: F811
    faces, indices = OrlFaces(), np.array([0, 4, 12, 16])
    finder = FaceFinder(pipeline.size, every=True)
    given, found = (found_faces.crops(faces, indices, pipeline.size, chosen) for chosen in (None, finder))
    assert given.missed == 0 and given.bare.shape == found.masked.shape == (4, 3, pipeline.size, pipeline.size)
    covered = (given.bare != given.masked).any(1).float().mean((1, 2))
    assert covered.min() > 0.02 and covered.max() < 0.9
    assert not torch.equal(given.bare, found.bare)
    assert (given.bare - found.bare).abs().mean() < 0.3  # still the same faces
    rows = found_faces.table_of(pipeline, faces, indices)
    networks = 2 if pipeline.network.teacher is not None else 1
    assert rows.row_count == 4 * networks


def test_scores_of_faces_and_of_false_faces() -> None:
    """A detector that finds the face, the face and a corner, or nothing."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    box, landmarks = np.array([40.0, 40, 120, 120]), TEMPLATES["canonical"].tensor(80).double().numpy() + 40.5
    eyes = np.linalg.norm(landmarks[1] - landmarks[0])
    right = Detection(box - 0.5, landmarks - 0.5 + np.array([0.1 * eyes, 0]), 0.9)
    corner = Detection(np.array([0.0, 0, 30, 30]), landmarks / 4, 0.6)
    answers = iter([[right], [corner, right], []])

    class Answers(MtcnnDetector):
        def find_all(self, image: NDArray[np.uint8], least: float) -> Iterator[Detection]:
            return iter(next(answers))

    photos = Photos(*(np.stack([part] * 3) for part in (image, box, landmarks)))
    found = mtcnn_scores.scores_of(Answers(), photos, [SIDE])
    assert found.lost(0.5) == pytest.approx(1 / 3) and found.lost(0.95) == 1
    assert found.false_per_photo(0.5) == pytest.approx(1 / 3) and found.false_per_photo(0.7) == 0
    np.testing.assert_allclose(found.errors, np.full((2, 5), 0.1), atol=1e-9)


def test_table_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    faces = LfwFaces(str(write_lfw(tmp_path / "lfw")), test_folds=[0, 1], val_identities=4)
    monkeypatch.setattr(mtcnn_scores, "read_lfw", lambda *_: faces)
    mtcnn_scores.main([str(WEIGHTS_FILE), "--data", str(tmp_path)])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [str(threshold) for threshold in mtcnn_scores.THRESHOLDS]
    assert all(row[1:3] == row[3:5] for row in rows) and float(rows[0][1]) < 20
    assert f"{len(faces.bare('val'))} photos of 3 sizes" in shown
    with pytest.raises(SystemExit) as end:
        mtcnn_scores.main(["missing", "--data", str(tmp_path)])
    assert end.value.code == 2 and "no detector weights" in capsys.readouterr().err
