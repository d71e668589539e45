"""Every YAML in configs/ through the real command line; on a few images of noise where the overlay does not name the data."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deocc.networks import create_embedder
from tests.conftest import ROOT, SMALL, TINY_STAGE1, draw_folder, run_deocc

CONFIGS = ROOT / "configs"
STAGES = {"inpaint.yaml": CONFIGS / "inpaint.yaml", "distill.yaml": CONFIGS / "distill.yaml"}
OVERLAYS = sorted(path for path in CONFIGS.glob("*/*.yaml"))
ELSEWHERE = {
    "trainer/fsdp.yaml": "tests/modules/test_scale.py runs its strategy, with two processes",
    "trainer/ddp.yaml": "tests/numbers/test_processes.py runs it, with two processes",
    "logger/wandb.yaml": "tests/cli/test_loggers.py runs it, with a real logger",
    "logger/tensorboard.yaml": "tests/cli/test_loggers.py runs it, with a real logger",
    "ablation/paper.yaml": "tests/apps/ runs it: a plan of `deocc ablate`",
    "paper/ablation.yaml": "tests/apps/ parses all its commands: a plan of `deocc ablate`",
    **{
        f"data/{name}.yaml": "tests/cli/test_paper.py runs it, on a fake twin"
        for name in ("celeba", "record", "pairs", "bin")
    },
    **{
        f"paper/{name}.yaml": "tests/cli/test_paper.py runs it, on a fake twin"
        for name in ("inpaint", "distill", "lfw", "ar")
    },
    **{
        f"lfw/{name}.yaml": "tests/cli/test_paper.py runs it, on a fake twin"
        for name in ("data", "segment", "inpaint", "distill")
    },
}
LARGE = {"teacher/arcface.yaml": "iresnet50", "teacher/facenet.yaml": "inception_resnet_v1"}
"""Overlays whose recogniser takes many seconds to train for a step, and its name: `make test-faults` runs them."""
NO_GPU = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.num_nodes",
    "1",
    "--trainer.strategy",
    "auto",
]
"""What of an overlay for GPUs cannot be tried without them."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights files such as people own, with random numbers in them, by the name of the recogniser."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        "iresnet50": _state(folder, "iresnet50"),
        "inception_resnet_v1": _state(folder, "inception_resnet_v1"),
        "onnx": _onnx(folder),
    }


def _state(folder: Path, name: str) -> str:
    path = folder / f"{name}.pt"
    embedder = create_embedder(name, pretrained=False)
    network = embedder.network.train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # the statistics of random weights, without which fifty layers overflow
    with torch.no_grad():
        network(torch.rand(4, 3, embedder.input_size, embedder.input_size))
    torch.save(network.state_dict(), path)
    return str(path)


def _onnx(folder: Path) -> str:
    path = folder / "recogniser.onnx"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, stride=7), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter is an old one, but quick
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 112, 112),),
            path,
            dynamo=False,
            input_names=["face"],
            dynamic_axes={"face": {0: "batch"}},
        )
    return str(path)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of face crops."""
    return draw_folder(tmp_path_factory.mktemp("noise"))


def _further_words(overlay: Path, weights: dict[str, str], noise: Path) -> list[str]:
    """What the overlay's first comment asks the user to add, and the data where the overlay leaves them open."""
    content = yaml.safe_load(overlay.read_text())
    teacher = content.get("model", {}).get("init_args", {}).get("teacher")
    names_faces = "face_set" in content.get("data", {})
    words = ["--model.init_args.teacher_weights", weights[teacher]] if teacher in weights else []
    words += NO_GPU if overlay.stem in {"gpu", "gpus", "nodes"} else []
    if not names_faces:
        words += ["--data.face_set", "deocc.data.FolderFaces"]
    if not names_faces or overlay.stem == "folder":
        words += ["--data.face_set.init_args.root", str(noise)]
    return words


def test_configs_holds_the_two_stages_and_overlays_only() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(STAGES)
    assert len(OVERLAYS) >= 8
    assert all(path.read_text().startswith("#") for path in OVERLAYS), "an overlay says at its top what it is for"


def _parameter(overlay: Path) -> Any:
    name = f"{overlay.parent.name}/{overlay.name}"
    return pytest.param(overlay, id=name, marks=[pytest.mark.slow] if name in LARGE else [])


@pytest.mark.parametrize("overlay", [_parameter(overlay) for overlay in OVERLAYS])
def test_an_overlay_runs_on_its_stage(
    overlay: Path, stage1: Path, noise: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    if reason := ELSEWHERE.get(f"{overlay.parent.name}/{overlay.name}"):
        pytest.skip(reason)
    of_stage1 = overlay.stem.startswith("inpaint")
    stage = STAGES["inpaint.yaml" if of_stage1 else "distill.yaml"]
    own = TINY_STAGE1 if of_stage1 else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    further = _further_words(overlay, weights, noise)
    files = ["--config", str(stage), "--config", str(overlay), "--run", str(tmp_path / "run")]
    run_deocc("fit", *files, *SMALL, *own, *further, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("name", LARGE)
def test_an_overlay_with_a_large_recogniser_is_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_deocc("fit", "--config", str(STAGES["distill.yaml"]), "--config", str(CONFIGS / name), "--print_config")
    assert not ended.value.code
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["teacher"] == LARGE[name]
