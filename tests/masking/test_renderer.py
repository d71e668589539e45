"""Promises of the renderer for every kind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deocc.geometry import TEMPLATES
from deocc.masking import Canvas, Kind, Layer, list_kinds, register_kind, render
from deocc.masking.random import uniform

MakeFaces = Callable[..., Tensor]

BUILT_IN = ("surgical", "cloth", "n95", "scarf", "sunglasses", "hand", "box", "strokes", "blob")
each_kind = pytest.mark.parametrize("kind", BUILT_IN)


def test_order_of_kinds_is_fixed() -> None:
    assert list_kinds() == BUILT_IN


@each_kind
@pytest.mark.parametrize("grey", [True, False])
def test_mask_is_where_face_changed(kind: str, grey: bool, make_faces: MakeFaces) -> None:
    faces = make_faces(8, 96, grey)
    before = faces.clone()
    masked, masks = render(faces, None, kind, torch.arange(8))
    assert torch.equal(faces, before)
    assert (
        masked.shape == faces.shape and masks.shape == (8, 1, 96, 96) and masked.dtype == masks.dtype == torch.float32
    )
    assert masked.min() >= -1 and masked.max() <= 1 and bool(((masks == 0) | (masks == 1)).all())
    changed = (masked != faces).any(1, keepdim=True)
    assert not bool((changed & (masks == 0)).any())
    assert float(changed[masks == 1].float().mean()) > 0.99


@each_kind
def test_image_independent_of_batch(kind: str, make_faces: MakeFaces) -> None:
    """With 97 pixels, vector registers do not end where images end, which would show in a tail rounded differently."""
    count, size = 13, 97
    faces, seeds = make_faces(count, size), torch.arange(count) * 7919
    landmarks = (
        TEMPLATES["canonical"].tensor(size) + torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(0)) * 2
    )
    masked, masks = render(faces, landmarks, kind, seeds)
    for i in range(count):
        alone = render(faces[i : i + 1], landmarks[i : i + 1], kind, seeds[i : i + 1])
        assert torch.equal(alone[0][0], masked[i]) and torch.equal(alone[1][0], masks[i])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = render(faces[order], landmarks[order], kind, seeds[order])
    assert torch.equal(shuffled[0], masked[order]) and torch.equal(shuffled[1], masks[order])


def test_mixed_batch_equals_images_alone(make_faces: MakeFaces) -> None:
    faces = torch.cat([make_faces(10), make_faces(10, grey=True)])
    kinds, seeds = torch.arange(20) % 10 - 1, torch.arange(20)
    masked, masks = render(faces, None, kinds, seeds)
    for i in range(20):
        alone = render(faces[i : i + 1], None, kinds[i : i + 1], seeds[i : i + 1])
        assert torch.equal(alone[0][0], masked[i]) and torch.equal(alone[1][0], masks[i])
    assert torch.equal(masked[kinds == -1], faces[kinds == -1]) and masks[kinds == -1].sum() == 0


def test_no_global_random_state(make_faces: MakeFaces) -> None:
    faces = make_faces(9)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = render(faces, None, BUILT_IN, torch.arange(9))[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, render(faces, None, BUILT_IN, torch.arange(9))[0])


@each_kind
def test_seeds_give_different_masks(kind: str, make_faces: MakeFaces) -> None:
    _, masks = render(make_faces(1).expand(24, -1, -1, -1), None, kind, torch.arange(24))
    assert len({mask.numpy().tobytes() for mask in masks}) == 24


@each_kind
def test_grey_faces_stay_grey(kind: str, make_faces: MakeFaces) -> None:
    seeds = torch.arange(16)
    grey, grey_masks = render(make_faces(16, grey=True), None, kind, seeds)
    colour, colour_masks = render(make_faces(16), None, kind, seeds)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    assert torch.equal(grey_masks, colour_masks)
    covered = colour.permute(1, 0, 2, 3)[:, colour_masks[:, 0] == 1]
    assert float((covered.amax(0) - covered.amin(0)).max()) > 0.05


def test_forms_of_kinds_and_landmarks(make_faces: MakeFaces) -> None:
    faces, seeds, template = make_faces(3), torch.arange(3), TEMPLATES["canonical"].tensor(64)
    expected = render(faces, None, "hand", seeds)[0]
    assert torch.equal(expected, render(faces, template, ["hand"] * 3, seeds)[0])
    assert torch.equal(
        expected, render(faces, template.expand(3, 5, 2), torch.full((3,), list_kinds().index("hand")), seeds)[0]
    )


def test_empty_batch() -> None:
    masked, masks = render(torch.zeros(0, 3, 32, 32), None, "box", torch.zeros(0, dtype=torch.int64))
    assert masked.shape == (0, 3, 32, 32) and masks.shape == (0, 1, 32, 32)


@pytest.mark.parametrize("kind", BUILT_IN[:6])  # a box and strokes are not lit
def test_light_from_one_side(kind: str) -> None:
    ramp = torch.linspace(-0.8, 0.8, 96).expand(16, 3, 96, 96)
    lit, masks = render(ramp, None, kind, torch.arange(16))
    mirrored, _ = render(ramp.flip(-1), None, kind, torch.arange(16))
    difference = ((lit - mirrored) * masks).mean((0, 1, 2))
    assert difference[48:].sum() > 0 > difference[:48].sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": torch.zeros(2, 1, 32, 32)}, "float faces"),
        ({"faces": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "float faces"),
        ({"faces": torch.zeros(2, 3, 32, 40)}, "square canonical crops"),
        ({"landmarks": torch.zeros(2, 4, 2)}, "landmarks"),
        ({"landmarks": torch.zeros(3, 5, 2)}, "landmarks"),
        ({"landmarks": torch.full((2, 5, 2), float("nan"))}, "finite"),
        (
            {"landmarks": torch.tensor([(900.0, 900.0), (930, 900), (915, 915), (902, 930), (928, 930)])},
            r"outside the crop on images \[0, 1\]",
        ),
        ({"kinds": "beard"}, "unknown occluder 'beard': choose from surgical, cloth"),
        ({"kinds": torch.tensor([0, 99])}, "from -1 to"),
        ({"kinds": torch.tensor([0.0, 1.0])}, "int64 kind"),
        ({"kinds": ["box"]}, "one name per face"),
        ({"seeds": torch.arange(3)}, "int64 seed"),
    ],
)
def test_render_bad_input(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "faces": torch.zeros(2, 3, 32, 32),
        "landmarks": None,
        "kinds": "surgical",
        "seeds": torch.arange(2),
    }
    with pytest.raises(ValueError, match=message) as error:
        render(**(given | change))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_nan_colours_stay_under_mask(own_kinds: None, make_faces: MakeFaces) -> None:
    def paint(canvas: Canvas) -> Layer:
        alpha = (canvas.v.abs() < 0.2).float()
        return Layer(alpha, (0.5 / alpha - 0.5 / alpha + 0.5)[:, None].expand(-1, canvas.channels, -1, -1))

    register_kind(Kind("band", None, paint))
    faces = make_faces(2)
    faces[:, :, :8] = -0.0
    masked, masks = render(faces, None, "band", torch.arange(2))
    assert masks.any() and torch.equal(masked, torch.where(masks == 1, 0.0, faces))
    assert masked[:, :, :8].signbit().all()


def test_grain_is_shifted_tile(own_kinds: None) -> None:
    """On 150 x 140 pixels, more than the tile's 128, against its definition pixel by pixel."""
    grains = []

    def paint(canvas: Canvas) -> Layer:
        grains.append(canvas.grain)
        return Layer(torch.ones_like(canvas.u), canvas.grain[:, None])

    register_kind(Kind("noise", None, paint))
    seeds = torch.arange(2)
    render(
        torch.zeros(2, 3, 150, 140), torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 140, "noise", seeds
    )
    tile, places = uniform(torch.arange(128), 128) * 2 - 1, (uniform(seeds, 2, stream=1) * 128).long().tolist()
    for grain, (top, left) in zip(grains[0], places, strict=True):
        assert all(
            grain[y, x] == tile[(y + top) % 128, (x + left) % 128] for y in (0, 77, 127, 149) for x in (0, 127, 139)
        )


def test_registered_kind(own_kinds: None, make_faces: MakeFaces) -> None:
    def paint(canvas: Canvas) -> Layer:
        alpha = canvas.cover(canvas.v.abs() - 0.2)
        return Layer(alpha, torch.zeros_like(alpha)[:, None].expand(-1, canvas.channels, -1, -1))

    register_kind(Kind("band", None, paint))
    assert list_kinds() == (*BUILT_IN, "band")
    masked, masks = render(make_faces(2), None, "band", torch.arange(2))
    rows = masks[0, 0, :, 32].nonzero()[:, 0]
    eye_line, eye_distance = 64 * 150 / 350, 64 * 100 / 350
    assert abs(float(rows.float().mean()) - (eye_line - 0.5)) < 1 and abs(len(rows) - 0.4 * eye_distance) < 3
    assert float(masked[0, 0, round(eye_line), 32]) == -1
    with pytest.raises(ValueError, match="exists already"):
        register_kind(Kind("band", None, paint))
