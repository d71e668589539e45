"""Compare two faces with a file of `deocc export --to onnx`; needs onnxruntime, numpy and Pillow, and no deocc.

python run_onnx.py MODEL.onnx A.png B.png                  crops aligned as for ArcFace, 112 x 112
python run_onnx.py MODEL.onnx A.jpg B.jpg POINTS POINTS    photos; POINTS: "x,y x,y x,y x,y x,y" in pixels, of the eyes,
                                                           the nose and the corners of the mouth
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def crop(photo: Image.Image, points: Sequence[Sequence[float | str]], face: dict[str, Any]) -> np.ndarray:
    """(3, S, S) float32: the canonical crop, by the similarity that brings five points nearest to the template's."""
    # Numbers of the complex plane, from the corner of the first pixel, whose centre is (0, 0) in all lists of points.
    here, there = (np.array(each, float) @ [1, 1j] + 0.5 + 0.5j for each in (points, face["template"]))
    turn = np.vdot(here - here.mean(), there - there.mean()) / np.vdot(here - here.mean(), here - here.mean()).real
    finer = max(1, int(1 / abs(turn)))  # many pixels of the photo in one of the crop are averaged
    back, edge = 1 / turn / finer, 64
    start = (here.mean() - there.mean() / turn) / finer + edge + 1j * edge
    pixels = np.pad(np.asarray(photo.convert("RGB").reduce(finer)), ((edge, edge), (edge, edge), (0, 0)), "edge")
    coefficients = (back.real, -back.imag, start.real, back.imag, back.real, start.imag)
    warped = Image.fromarray(pixels).transform(
        (face["size"],) * 2, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return (np.asarray(warped, np.float32) / 127.5 - 1).transpose(2, 0, 1)


def main(model: str, first: str, second: str, *points: str) -> None:
    """Print how similar the faces are, and what the file's thresholds make of that."""
    session = onnxruntime.InferenceSession(model)
    about = json.loads(session.get_modelmeta().custom_metadata_map["deocc.json"])
    marks = [[pair.split(",") for pair in each.split()] for each in points] or [
        about["alignments"]["arcface112"]["template"]
    ] * 2
    faces = np.stack(
        [crop(Image.open(path), five, about["face"]) for path, five in zip((first, second), marks, strict=True)]
    )
    embedding, covered = session.run(
        ["embedding", "covered"], {"face": faces}
    )  # "completed_face" and "mask" are the others
    print(f"similarity {embedding[0] @ embedding[1]:.3f}, covered {covered[0]:.0%} and {covered[1]:.0%} of the faces")
    if about["thresholds"]:
        masked = sum(covered >= about["thresholds"]["masked"]["limit"])
        condition = ("clean-clean", "clean-masked", "masked-masked")[masked]
        for row in about["thresholds"]["thresholds"][condition]:
            print(f"{condition}: same person from {row['same']:.3f} on, at a false-accept rate of {row['target']:g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
