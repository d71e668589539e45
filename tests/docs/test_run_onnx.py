"""The example docs/examples/run_onnx.py runs without deocc and torch, and gives the pipeline's answers."""

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
from tests.conftest import ROOT
from tests.random_model import SMALL_STUDENT, make_pipeline
from tests.scenes import TWO, Pasted, draw_scene

EXAMPLE = ROOT / "docs/examples/run_onnx.py"

# Runs the unchanged example, and stores input and output of the network.
RUNNER = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"deocc", "torch", "cv2", "onnx", "scipy"}:
            raise ImportError(f"{name} is not in a clean environment")

sys.meta_path.insert(0, Refuse())
import numpy, onnxruntime
example, out, *argv = sys.argv[1:]
run = onnxruntime.InferenceSession.run

def watched(self, names, feed):
    outputs = run(self, names, feed)
    numpy.savez(out, face=feed["face"], **dict(zip(names, outputs)))
    return outputs

onnxruntime.InferenceSession.run = watched
runpy.run_path(example)["main"](*argv)
assert not {"deocc", "torch"} & set(sys.modules)
"""


def run_example(out: Path, *argv: str) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
    """Return what the example prints, and input and output of the network."""
    command = [sys.executable, "-I", "-c", RUNNER, str(EXAMPLE), str(out), *argv]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, dict(np.load(out))


def crop_by_example(photo: Image.Image, points: Any, size: int) -> Any:
    return runpy.run_path(str(EXAMPLE))["crop"](photo, points, face_contract(size))


def test_example_equals_the_pipeline(tmp_path: Path) -> None:
    pipeline, scene = make_pipeline(SMALL_STUDENT, 8, 64), draw_scene(TWO)
    model, photo = tmp_path / "model.onnx", tmp_path / "photo.png"
    model.write_bytes(export(pipeline, "onnx").content)
    scene.save(photo)
    points = [" ".join(f"{x:.4f},{y:.4f}" for x, y in face.landmarks()) for face in TWO]
    printed, kept = run_example(tmp_path / "kept.npz", str(model), str(photo), str(photo), *points)

    face = torch.from_numpy(kept["face"])
    assert np.abs(kept["embedding"] - pipeline.process_faces(face).embedding.numpy()).max() <= 1e-4
    verdict = pipeline.verify_faces(face[0], face[1])
    assert printed.startswith(f"similarity {verdict.similarity:.3f}, covered ")
    assert f"{verdict.condition}: same person from 0.500 on, at a false-accept rate of 0.01" in printed

    crop = Image.fromarray(np.asarray(scene)[:224, :224]).resize((112, 112))
    crop.save(tmp_path / "crop.png")
    printed, kept = run_example(tmp_path / "kept.npz", str(model), *[str(tmp_path / "crop.png")] * 2)
    assert printed.startswith("similarity 1.000")
    assert np.abs(kept["face"][0] - crop_by_example(crop, TEMPLATES["arcface"].points, 64)).max() == 0


@pytest.mark.parametrize("width", [60, 180, 900])
@pytest.mark.parametrize("angle", [0, 25])
def test_example_crop_is_canonical(width: int, angle: float) -> None:
    """On a smooth image, where a shift by half a pixel shows and the method of averaging does not."""
    scene = draw_scene((), 4 * width, 3 * width)
    points = Pasted(0, width, width, width, angle).landmarks()
    expected = align(np.asarray(scene), points, 64)[0].numpy()
    assert np.abs(crop_by_example(scene, points, 64) - expected).max() < 0.02
    shifted = points + width / 40  # half a pixel of the crop
    assert np.abs(crop_by_example(scene, shifted, 64) - expected).max() > 0.02
