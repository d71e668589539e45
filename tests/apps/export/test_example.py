"""The example in the documentation runs without deocc and torch, and gives the pipeline's answers."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deocc.geometry import TEMPLATES, align
from deocc.inference.export import export
from deocc.inference.model_folder import face_contract
from deocc.inference.pipeline import Pipeline
from tests.apps.photos.scenes import TWO, Pasted, draw_scene
from tests.conftest import ROOT

EXAMPLE = ROOT / "docs/examples/run_onnx.py"

# Runs the example as it stands, and keeps what went into the network and came out of it.
RUNNER = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"deocc", "torch", "cv2", "onnx", "scipy"}:
            raise ImportError(f"{name} is not in a clean environment")

sys.meta_path.insert(0, Refuse())
import numpy, onnxruntime
example, out, *words = sys.argv[1:]
run = onnxruntime.InferenceSession.run

def watched(self, names, feed):
    outputs = run(self, names, feed)
    numpy.savez(out, face=feed["face"], **dict(zip(names, outputs)))
    return outputs

onnxruntime.InferenceSession.run = watched
runpy.run_path(example)["main"](*words)
assert not {"deocc", "torch"} & set(sys.modules)
"""


def run_example(out: Path, *words: str) -> tuple[str, dict[str, np.ndarray]]:
    """What the example prints, and what its network saw and gave."""
    command = [sys.executable, "-I", "-c", RUNNER, str(EXAMPLE), str(out), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, dict(np.load(out))


def test_two_photos_are_compared_as_the_pipeline_compares_them(small: Pipeline, tmp_path: Path) -> None:
    model, scene = tmp_path / "model.onnx", draw_scene(TWO)
    model.write_bytes(export(small, "onnx").content)
    scene.save(tmp_path / "photo.png")
    landmarks = [each.landmarks() for each in TWO]
    words = [" ".join(f"{x:.4f},{y:.4f}" for x, y in points) for points in landmarks]
    said, kept = run_example(tmp_path / "kept.npz", str(model), *[str(tmp_path / "photo.png")] * 2, *words)

    face = torch.from_numpy(kept["face"])
    expected = small.process_faces(face)
    assert np.abs(kept["embedding"] - expected.embedding.numpy()).max() <= 1e-4
    verdict = small.verify_faces(face[0], face[1])
    assert said.startswith(f"similarity {verdict.similarity:.3f}, covered ")
    assert f"{verdict.condition}: same person from 0.500 on, at a false-accept rate of 0.01" in said

    crop = Image.fromarray(np.asarray(scene)[:224, :224]).resize((112, 112))
    crop.save(tmp_path / "crop.png")
    said, kept = run_example(tmp_path / "kept.npz", str(model), *[str(tmp_path / "crop.png")] * 2)
    assert said.startswith("similarity 1.000")
    assert np.abs(kept["face"][0] - cut_by_example(crop, TEMPLATES["arcface"].points, 64)).max() == 0


@pytest.mark.parametrize("width", [60, 180, 900])
@pytest.mark.parametrize("turn", [0, 25])
def test_its_crop_is_the_canonical_one(width: int, turn: float) -> None:
    """On a smooth picture, where a shift by half a pixel shows and the way of averaging does not."""
    scene = draw_scene((), 4 * width, 3 * width)
    points = Pasted(0, width, width, width, turn).landmarks()
    expected = align(np.asarray(scene), points, 64)[0].numpy()
    assert np.abs(cut_by_example(scene, points, 64) - expected).max() < 0.02
    assert np.abs(cut_by_example(scene, points + width / 40, 64) - expected).max() > 0.02  # half a pixel of the crop


def cut_by_example(photo: Image.Image, points: Any, size: int) -> Any:
    return runpy.run_path(str(EXAMPLE))["crop"](photo, points, face_contract(size))
