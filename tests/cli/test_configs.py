"""Every configuration through the real command line; on noise images if it does not name the data."""

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deocc import training
from deocc.data import MaskedFaceDataModule
from deocc.networks import create_embedder
from tests.conftest import ROOT, SMALL, TINY_STAGE1, draw_folder, run_deocc

CONFIGS = ROOT / "configs"
CONTENT = {
    str(path.relative_to(CONFIGS).with_suffix("")): yaml.safe_load(path.read_text())
    for path in sorted(CONFIGS.rglob("*.yaml"))
}
STAGES = [name for name, content in CONTENT.items() if "run" in content and "model" in content]
OVERLAYS = [name for name in CONTENT if "/" in name]
ELSEWHERE = {
    "trainer/ddp": "tests/numbers/test_processes.py",
    "logger/": "tests/cli/test_loggers.py",
    "ablation/paper": "tests/commands/ablate",
    "ablation/choices": "tests/commands/ablate",
    "paper/": "tests/cli/test_paper.py",
    "lfw/": "tests/cli/test_paper.py",
    **dict.fromkeys(["data/celeba", "data/record", "data/pairs", "data/bin"], "tests/cli/test_paper.py"),
}
"""By how a name begins, where it runs instead."""
LARGE = {"teacher/arcface": "iresnet50", "teacher/facenet": "inception_resnet_v1"}
"""Overlays whose recogniser takes many seconds for a step, which `make test-faults` runs."""
NO_GPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights files with random numbers, by the name of the recogniser."""
    folder = tmp_path_factory.mktemp("weights")
    return {**{name: _state(folder, name) for name in LARGE.values()}, "onnx": _onnx(folder)}


def _state(folder: Path, name: str) -> str:
    path = folder / f"{name}.pt"
    embedder = create_embedder(name, pretrained=False)
    network = embedder.network.train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # collect the statistics of the random weights, or fifty layers overflow
    with torch.no_grad():
        network(torch.rand(4, 3, embedder.input_size, embedder.input_size))
    torch.save(network.state_dict(), path)
    return str(path)


def _onnx(folder: Path) -> str:
    path = folder / "recogniser.onnx"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, stride=7), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    settings: dict[str, Any] = {"dynamo": False, "input_names": ["face"], "dynamic_axes": {"face": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this exporter is old but fast
        torch.onnx.export(network, (torch.zeros(2, 3, 112, 112),), path, **settings)
    return str(path)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of face crops."""
    return draw_folder(tmp_path_factory.mktemp("noise"))


def test_configs_are_stages_and_documented_overlays() -> None:
    assert {name for name in CONTENT if "/" not in name} == {"inpaint", "distill"}
    assert len(OVERLAYS) >= 8
    assert all((CONFIGS / f"{name}.yaml").read_text().startswith("# ") for name in CONTENT)


@pytest.mark.parametrize("name", STAGES)
def test_stage_states_only_what_differs(name: str) -> None:
    """From the signatures, which are the one source of defaults, and from the trainer defaults of the command line."""
    model, data, trainer = (dict(CONTENT[name][key]) for key in ("model", "data", "trainer"))
    module, _, class_name = model["class_path"].rpartition(".")
    constructor = getattr(importlib.import_module(module), class_name)
    for given, known in ((model.get("init_args", {}), constructor), (data, MaskedFaceDataModule)):
        defaults = {key: value.default for key, value in inspect.signature(known).parameters.items()}
        assert [key for key, value in given.items() if value == defaults[key]] == []
    assert [key for key, value in trainer.items() if value == training.TRAINER_DEFAULTS.get(key)] == []
    assert "callbacks" not in trainer


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in OVERLAYS]
)
def test_overlay_runs_on_its_stage(
    name: str, stage1: Path, noise: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    for beginning, where in ELSEWHERE.items():
        if name.startswith(beginning):
            pytest.skip(where)
    of_stage1 = "/inpaint" in name
    own = TINY_STAGE1 if of_stage1 else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    teacher = CONTENT[name].get("model", {}).get("init_args", {}).get("teacher")
    if teacher in weights:
        own = [*own, "--model.init_args.teacher_weights", weights[teacher]]
    if name in ("trainer/gpu", "trainer/gpus", "trainer/nodes"):
        own = [*own, *NO_GPU]
    if "face_set" not in CONTENT[name].get("data", {}):
        own = [*own, "--data.face_set", "deocc.data.FolderFaces"]
    if "--data.face_set" in own or name == "data/folder":
        own = [*own, "--data.face_set.init_args.root", str(noise)]
    files = ["--config", "inpaint" if of_stage1 else "distill", "--config", name, "--run", str(tmp_path / "run")]
    run_deocc("fit", *files, *SMALL, *own, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("name", LARGE)
def test_overlay_with_a_large_recogniser_is_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_deocc("fit", "--config", "distill", "--config", name, "--print_config")
    assert not ended.value.code
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["teacher"] == LARGE[name]
