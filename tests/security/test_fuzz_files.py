"""Damaged pickles, weights, arrays and archives are read or refused in one line; no code in them is run."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import deocc
from deocc.data.images import ImageStore
from deocc.data.insightface import BinFaces
from deocc.evaluation.verification import PairScores, read_scores, write_scores
from deocc.inference.gallery import CachedFace, GalleryCache
from deocc.inference.model_folder import write_model
from deocc.inference.network import FaceNetwork
from deocc.inference.outputs import EmbeddedFace, EmbeddingFile
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders import dlib as dlib_resnet
from deocc.networks.embedders.dlib import read_layers
from deocc.networks.weights import read_checkpoint, read_state_dict
from tests.fake_sets.bin_file import write_bin_file
from tests.fake_sets.faces import save_face
from tests.random_model import dlib_config
from tests.security.fuzzing import MANY, damaged, for_each


@MANY
def test_a_damaged_verification_file(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "faces.bin"
    files = []
    for spelling in ("python2", "bytes", "latin1", "array", "array5"):
        write_bin_file(path, 1, spelling)
        files.append(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        faces = BinFaces(str(path))
        assert faces.landmarks.shape == (len(faces), 5, 2) and len(faces) % 2 == 0

    for_each(examples, damaged(files), read)


@MANY
def test_a_damaged_network_of_dlib(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "network.dat"
    beginning = dlib_resnet.packaged_weights().read_bytes()[:60_000]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged or no dlib face network"):
            read_layers(path)

    for_each(examples, damaged([beginning]), read)


def _stage_1() -> dict[str, object]:
    deoccluder = Deoccluder({"width": 4, "depth": 3}, {"width": 4})
    state = {f"average.module.{key}": value for key, value in deoccluder.generator.state_dict().items()}
    state |= {f"segmenter.{key}": value for key, value in deoccluder.segmenter.state_dict().items()}
    return {
        "stage": "inpainting",
        "hyper_parameters": {"width": 4, "attention": True, "segmenter_width": 4},
        "state_dict": state,
    }


@MANY
def test_a_damaged_checkpoint(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    files = []
    for new in (True, False):
        torch.save(_stage_1(), path, _use_new_zipfile_serialization=new)
        files.append(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        assert {"state_dict", "hyper_parameters"} <= set(read_checkpoint(path))
        assert isinstance(Deoccluder.from_checkpoint(path), Deoccluder)

    for_each(examples, damaged(files), read)


@MANY
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights(examples: int, suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"weights{suffix}", {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)}
    files = [safetensors.torch.save(state)]
    if suffix == ".pt":
        files = []
        for new in (True, False):
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=new)
            files.append(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        assert all(isinstance(value, Tensor) for value in read_state_dict(path).values())

    for_each(examples, damaged(files), read)


@MANY
def test_damaged_pair_scores(examples: int, tmp_path: Path) -> None:
    path, numbers = tmp_path / "scores.npz", torch.arange(4)
    write_scores(path, {"teacher": PairScores(torch.rand(4), numbers < 2, numbers, numbers, numbers % 2)})
    whole = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for scores in read_scores(path).values():
            assert scores.similarity.shape == scores.same.shape == scores.first_identity.shape
            assert scores.same.dtype == torch.bool

    for_each(examples, damaged([whole]), read)


@MANY
def test_damaged_embeddings_and_a_damaged_gallery(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    face = np.ones(4, np.float32)
    embeddings = EmbeddingFile(path, "model")
    embeddings.put(EmbeddedFace("a-1", "a.png", 1, "mark", face))
    embeddings.write()
    files = [path.read_bytes()]
    path.unlink()
    GalleryCache(path, "key").update([CachedFace("a.png", [1, 2], face, 0.5)])
    files.append(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            faces = EmbeddingFile(path, "model").faces
        except ValueError:
            found = GalleryCache(path, "key").faces.values()
            assert all(len(entry.stamp) == 2 and entry.embedding.ndim == 1 for entry in found)
        else:
            assert all(found.embedding.ndim == 1 and np.isfinite(found.embedding).all() for found in faces)

    for_each(examples, damaged(files), read)


@MANY
def test_a_damaged_zip_of_images(examples: int, tmp_path: Path) -> None:
    save_face(tmp_path / "1.png", 0, 0, 16, 16)
    files = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "faces.zip", "w", method) as packed:
            for name in ("faces/1.png", "faces/a/2.png", "../3.png"):
                packed.write(tmp_path / "1.png", name)
        files.append((tmp_path / "faces.zip").read_bytes())
    path = tmp_path / "faces.zip"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        images = ImageStore(path, "faces")
        for name in images.names():
            assert ".." not in name and images.size(name) >= 0
            assert images.read(name).ndim == 3

    for_each(examples, damaged(files), read)


@MANY
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_folder(examples: int, name: str, tmp_path: Path) -> None:
    config = dlib_config(64, False)
    write_model(tmp_path, config, FaceNetwork(config), "a test's model")
    whole = (tmp_path / name).read_bytes()
    sizes = [json.dumps({**json.loads(whole), **odd}).encode() for odd in _ODD] if name == "config.json" else []

    def read(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        assert deocc.load(tmp_path).size <= 1024

    for_each(examples // 6, damaged([whole, *sizes]), read)  # a network is made each time


_ODD: tuple[dict[str, Any], ...] = (
    {"deoccluder": {"generator": {"width": 4, "depth": 3}, "segmenter": {"width": 4}}},
    {"face": {"size": 1000}},
    {"thresholds": {"thresholds": {}, "masked": {}}},
)
