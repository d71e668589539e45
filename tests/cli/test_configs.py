"""Every YAML in configs/ through the real command line, on real faces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deocc.networks import create_embedder
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc

CONFIGS = ROOT / "configs"
STAGES = {"inpaint.yaml": CONFIGS / "inpaint.yaml", "distill.yaml": CONFIGS / "distill.yaml"}
OVERLAYS = sorted(path for path in CONFIGS.glob("*/*.yaml"))
ELSEWHERE = {"trainer/ddp.yaml": "tests/cli/test_processes.py runs it, with two processes"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights files such as people own, with random numbers in them, by the overlay that asks for them."""
    folder = tmp_path_factory.mktemp("weights")
    return {"arcface": _state(folder, "iresnet50"), "facenet": _state(folder, "inception_resnet_v1"), "onnx": _onnx(folder)}


def _state(folder: Path, name: str) -> str:
    path = folder / f"{name}.pt"
    torch.save(create_embedder(name, pretrained=False).network.state_dict(), path)
    return str(path)


def _onnx(folder: Path) -> str:
    path = folder / "recogniser.onnx"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, stride=7), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    torch.onnx.export(
        network, (torch.zeros(2, 3, 112, 112),), path, dynamo=False, input_names=["face"], dynamic_axes={"face": {0: "batch"}}
    )
    return str(path)


def _further_words(overlay: Path, weights: dict[str, str], folder: Path) -> list[str]:
    """What the overlay's first comment asks the user to add."""
    if overlay.parent.name == "teacher":
        return ["--model.init_args.teacher_weights", weights[overlay.stem]]
    if overlay.stem == "folder":
        return ["--data.face_set.init_args.root", str(_draw_folder(folder / "faces"))]
    return []


def _draw_folder(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for person in range(12):
        for image in range(2):
            path = root / f"person{person}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path)
    return root


def test_configs_holds_the_two_stages_and_overlays_only() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(STAGES)
    assert len(OVERLAYS) >= 8
    assert all(path.read_text().startswith("#") for path in OVERLAYS), "an overlay says at its top what it is for"


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_overlay_runs_on_its_stage(
    overlay: Path, stage1: Path, tmp_path: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := ELSEWHERE.get(f"{overlay.parent.name}/{overlay.name}"):
        pytest.skip(reason)
    monkeypatch.setenv("WANDB_MODE", "offline")
    of_stage1 = overlay.stem.startswith("inpaint")
    stage = STAGES["inpaint.yaml" if of_stage1 else "distill.yaml"]
    own = TINY_STAGE1 if of_stage1 else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    further = _further_words(overlay, weights, tmp_path)
    files = ["--config", str(stage), "--config", str(overlay), "--run", str(tmp_path / "run")]
    run_deocc("fit", *files, *SMALL, *own, *further, "--trainer.fast_dev_run", "true")
