"""dlib's face network: equality with dlib, and its file format."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.data import OrlFaces
from deocc.networks import Embedder, create_embedder
from deocc.networks.embedders import dlib as dlib_resnet

PEOPLE = (0, 3, 8, 12, 21, 26, 30, 39)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return create_embedder("dlib_resnet").freeze()


def orl_face(person: int) -> Image.Image:
    """Return a face of the ORL set, padded to a square."""
    faces = OrlFaces()
    index = int(np.flatnonzero(faces.identity == person)[0])
    return Image.fromarray(np.pad(faces.image(index), ((0, 0), (10, 10), (0, 0)), mode="edge"))


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_equals_dlib(embedder: Embedder) -> None:
    dlib = pytest.importorskip("dlib")
    oracle = dlib.face_recognition_model_v1(str(dlib_resnet.packaged_weights()))
    rng = np.random.default_rng(0)
    # Some faces are tinted, because grey ones do not distinguish red from blue.
    chips = [np.asarray(orl_face(person).resize((150, 150))) for person in PEOPLE]
    chips = [chip * rng.uniform(0.4, 1.0, 3) if number % 2 else chip for number, chip in enumerate(chips)]
    chips += [np.zeros((150, 150, 3)), rng.integers(0, 256, (150, 150, 3))]
    for chip in (np.ascontiguousarray(chip, dtype=np.uint8) for chip in chips):
        with torch.no_grad():
            found = embedder.embed_crop(to_tensor(chip))[0].numpy()
        np.testing.assert_allclose(found, np.array(oracle.compute_face_descriptor(chip)), rtol=0, atol=1e-5)


def test_embedding_independent_of_resolution(embedder: Embedder) -> None:
    large = [orl_face(person).resize((224, 224), Image.Resampling.BICUBIC) for person in PEOPLE]
    small = [face.resize((112, 112), Image.Resampling.BOX) for face in large]
    with torch.no_grad():
        a, b = (embedder(torch.cat([to_tensor(face) for face in faces])) for faces in (large, small))
    assert torch.cosine_similarity(a, b).min() > 0.99
    # Two pictures of one person differ by up to 0.6; the resolution must matter far less.
    assert (a - b).norm(dim=1).max() < 0.2 < torch.pdist(a).min()


def test_size_and_tail(embedder: Embedder) -> None:
    network: Any = embedder.network
    assert sum(parameter.numel() for parameter in embedder.parameters()) == 5_614_592
    assert len(network.blocks) == 14
    expected = [*network.blocks[-3:].parameters(), *network.head.parameters()]
    assert [id(parameter) for parameter in embedder.trainable_tail(3)] == [id(parameter) for parameter in expected]
    assert len(embedder.trainable_tail(15)) == len(list(embedder.parameters()))
    with pytest.raises(ValueError, match="15 blocks before its head, got blocks=16"):
        embedder.trainable_tail(16)


def test_random_weights() -> None:
    embedder = create_embedder("dlib_resnet", pretrained=False)
    embedding = embedder(torch.rand(3, 3, 64, 64) * 2 - 1)
    assert embedding.isfinite().all() and torch.pdist(embedding).min() > 0
    assert not embedder.pretrained


def test_read_layers_in_forward_order() -> None:
    kinds = [layer.kind for layer in dlib_resnet.read_layers(dlib_resnet.packaged_weights())]
    assert kinds[:4] == ["con_4", "affine_", "relu_", "max_pool_2"]
    assert kinds[-5:] == ["avg_pool_2", "add_prev_", "relu_", "avg_pool_2", "fc_2"]
    expected = {"con_4": 29, "affine_": 29, "relu_": 29, "add_prev_": 14, "avg_pool_2": 5, "max_pool_2": 1, "fc_2": 1}
    assert Counter(kinds) == expected


def replaced(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "it ends at byte"),
        (lambda data: data[: len(data) // 2], "it ends at byte"),
        (lambda data: data + b"\0", "1 bytes follow the last layer"),
        (lambda data: b"", "it ends at byte 0"),
        (lambda data: b"<html>404</html>", "no integer at byte 0"),
        (lambda data: replaced(data, data.index(b"loss_metric_2"), b"L"), "is expected"),
        (lambda data: replaced(data, data.index(b"con_4"), b"C"), "unknown layer 'Con_4'"),
        (lambda data: replaced(data, data.index(b"con_4") + 16, b"\0\0\xc0\x7f"), "not finite"),
    ],
    ids=["a byte short", "half", "a byte long", "empty", "a web page", "other loss", "other layer", "not a number"],
)
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "damaged.dat"
    path.write_bytes(damage(dlib_resnet.packaged_weights().read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        create_embedder("dlib_resnet", weights=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_or_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.dat.*pip install"):
        create_embedder("dlib_resnet", weights=str(tmp_path / "nowhere.dat"))
    monkeypatch.setattr(dlib_resnet, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"not installed: pip install face-recognition-models"):
        create_embedder("dlib_resnet")


def test_state_dict_loads_like_original(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "dlib.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in embedder.state_dict().items()}}, path)
    loaded = create_embedder("dlib_resnet", weights=str(path)).freeze()
    face = torch.rand(1, 3, 112, 112) * 2 - 1
    assert torch.equal(loaded(face), embedder(face))
