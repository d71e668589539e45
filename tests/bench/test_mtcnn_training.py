"""The crops that train MTCNN, and its training on a small LFW."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench import mtcnn_training as training
from deocc.data import LfwFaces
from deocc.detection.mtcnn import SIDES, WEIGHTS_FILE, MtcnnDetector
from tests.fake_sets.lfw import write_lfw

BOX, LANDMARKS = (60.0, 50.0, 110.0, 120.0), ((70.0, 75.0), (100.0, 75.0), (85.0, 90.0), (72.0, 105.0), (98.0, 105.0))


class NoCandidates(MtcnnDetector):
    """Proposes no faces, so that all squares are drawn."""

    def propose(self, image: np.ndarray) -> np.ndarray:
        return np.zeros((0, 4))


def photos(count: int, image: np.ndarray) -> training.Photos:
    boxes, landmarks = np.tile(np.array(BOX), (count, 1)), np.tile(np.array(LANDMARKS), (count, 1, 1))
    return training.Photos(np.repeat(image[None], count, 0), boxes, landmarks)


@pytest.fixture
def ramps() -> np.ndarray:
    """A photo whose red and green channels tell the place of each pixel."""
    y, x = np.mgrid[: training.SIDE, : training.SIDE].astype(np.uint8)
    return np.stack([x, y, np.zeros_like(x)], 2)


@pytest.mark.parametrize(("network", "side"), SIDES.items())
def test_targets_are_the_places_in_the_photo(network: str, side: int, ramps: np.ndarray) -> None:
    crops = training.cut_crops(photos(20, ramps), NoCandidates(), np.random.default_rng(0))[network]
    assert 0.2 < crops.is_face.float().mean() < 0.6 and not crops.targets[~crops.is_face].any()
    checked = 0
    for image, target in zip(crops.images[crops.is_face], crops.targets[crops.is_face], strict=True):
        for point, x, y in zip(LANDMARKS, target[4:9].tolist(), target[9:].tolist(), strict=True):
            if min(x, y) > 0.1 and max(x, y) < 0.9:
                found = image[:2, int(y * side), int(x * side)]
                assert np.abs(found.numpy() - np.array(point)).max() < 4 + 192 / side  # photos have at least 34 pixels
                checked += 1
        width, height = 1 + target[2] - target[0], 1 + target[3] - target[1]
        assert float(width / height) == pytest.approx((BOX[2] - BOX[0]) / (BOX[3] - BOX[1]), rel=0.1)
    assert checked > 100


def test_points_turn_with_their_photo(ramps: np.ndarray) -> None:
    angles = torch.tensor([0.0, 0.3, -0.7])
    images = torch.from_numpy(ramps).permute(2, 0, 1).float().expand(3, -1, -1, -1)
    points = torch.tensor(LANDMARKS).expand(3, 5, 2)
    turned, moved = training.turn(images, points, angles)
    assert torch.equal(moved[0], points[0])
    for image, own in zip(turned, moved.round().long(), strict=True):
        colours = image[:2, own[:, 1], own[:, 0]].T
        assert float((colours - torch.tensor(LANDMARKS)).abs().max()) < 1.1


def test_drawn_boxes_stay_around_their_faces(ramps: np.ndarray) -> None:
    given = photos(64, ramps)
    drawn = training.draw(given, np.random.default_rng(0))
    same = np.isclose(drawn.landmarks, given.landmarks, atol=1e-4).all((1, 2))
    assert 10 < same.sum() < 30
    np.testing.assert_allclose(drawn.boxes[same], given.boxes[same], atol=1e-4)
    sizes = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    np.testing.assert_allclose(sizes, [(BOX[2] - BOX[0], BOX[3] - BOX[1])] * 64, atol=1e-3)
    inside = (drawn.landmarks > drawn.boxes[:, None, :2]) & (drawn.landmarks < drawn.boxes[:, None, 2:])
    assert inside.all() and drawn.images.std() > 0


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_squares_near_and_far(spread: float) -> None:
    rng, face = np.random.default_rng(0), np.array(BOX)
    candidates = np.array([BOX, (0, 0, 30, 30), (70, 100, 100, 130)])
    near = np.concatenate([training.near(face, rng, spread) for _ in range(20)])
    far = np.concatenate([training.distant(face, candidates, 168, rng) for _ in range(20)])
    assert training.overlap(face, near).min() > 0.45 and training.overlap(face, far).max() < 0.3
    assert (near[:, 2:] - near[:, :2] == (near[:, 2:] - near[:, :2])[:, :1]).all()
    assert {(0, 0, 30, 30), (70, 100, 100, 130)} <= {tuple(square) for square in far.tolist()}


def test_loss_of_right_and_wrong_outputs() -> None:
    targets = torch.zeros(4, 14)
    targets[:2] = 0.5
    crops = training.Crops(torch.zeros(4, 3, 48, 48), torch.tensor([True, True, False, False]), targets)
    right = torch.cat([torch.tensor([[1.0], [1.0], [0.0], [0.0]]), targets], 1)
    assert float(training.loss_of(right, crops)) < 1e-4
    unseen = right.clone()
    unseen[2:, 1:] = 9
    assert float(training.loss_of(unseen, crops)) < 1e-4, "without a face there is no place to learn"
    for row, column in ((0, 0), (2, 0), (1, 3), (1, 9)):
        wrong = right.clone()
        wrong[row, column] = 0.7 if column else 0.5
        assert float(training.loss_of(wrong, crops)) > 0.01
    assert float(training.loss_of(right[:, :5], crops)) < 1e-4, "only the third network finds landmarks"
    assert float(training.loss_of(right[:, :5] + torch.eye(5)[3], crops)) > 0.01


def test_training_changes_all_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, output = write_lfw(tmp_path / "lfw"), tmp_path / "trained.safetensors"
    faces = LfwFaces(str(root), test_folds=[0, 1], val_identities=1)
    assert len(training.read_photos(faces, MtcnnDetector()).images) == len(faces.bare("train"))
    monkeypatch.setattr(training, "read_lfw", lambda *_: faces)  # the small set has fewer than 300 validation people
    training.main([str(WEIGHTS_FILE), "--data", str(root), "--steps", "2", "--output", str(output)])
    before, after = load_file(WEIGHTS_FILE), load_file(output)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert MtcnnDetector(str(output)).name == "mtcnn"


@pytest.mark.parametrize(("file", "message"), [("missing", "no detector weights"), (WEIGHTS_FILE, "no LFW images")])
def test_bad_arguments(file: Path | str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        training.main([str(file), "--data", str(tmp_path)])
    assert end.value.code == 2 and message in capsys.readouterr().err
