"""From a pipeline to the content of a file that was compared with torch on real faces."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch

from deocc.apps.export.checks import LIMIT, Accuracy, Parity, compare, measure, run_all
from deocc.apps.export.faces import Faces, embedded_faces, photo_faces
from deocc.apps.export.formats import FORMATS
from deocc.apps.export.graph import Graph, Outputs, Run
from deocc.apps.export.metadata import describe
from deocc.apps.export.network import ExportNetwork
from deocc.apps.export.onnx_graph import OnnxGraph
from deocc.apps.export.reduced import REDUCTIONS
from deocc.apps.pipeline import Pipeline
from deocc.evaluation.calibration import covered_share

Precision = Literal["fp32", "fp16", "int8"]

_CHECKED_EVERY: Final = 2  # of 40 validation faces
_CALIBRATED_EVERY: Final = 8  # of 200 training faces, each masked and clean; similarities differ as much with twice as many


@dataclass(frozen=True)
class Export:
    """A finished file, not yet on disk.

    Attributes:
        content: of the file.
        source: the faces that it was checked on.
        parity: of the float32 file.
        accuracy: of a smaller one; None for float32.
    """

    content: bytes
    source: str
    parity: Parity
    accuracy: Accuracy | None = None


def export(pipeline: Pipeline, kind: str, precision: Precision = "fp32", photos: Sequence[Path] = ()) -> Export:
    """Export a pipeline, on the CPU.

    Args:
        pipeline: on the CPU.
        kind: a name of `FORMATS`.
        precision: other than fp32 for onnx alone; needs the embedded faces.
        photos: to compare with torch on, in place of the embedded faces of validation people.

    Raises:
        ValueError: the file's outputs differ from torch's by more than `LIMIT`, the words contradict each other, or a photo has no face.
        FileNotFoundError: no faces to compare on: the package that ships them is not installed, or a photo is missing.
        ImportError: a package is not installed.
    """
    form = FORMATS[kind]
    if precision != "fp32" and kind != "onnx":
        raise ValueError(f"{precision} is for onnx alone, {kind} files are float32: leave it out, or take --to onnx")
    faces = photo_faces(pipeline, photos) if photos else embedded_faces(pipeline, "val", _CHECKED_EVERY)
    reference = reference_of(pipeline)
    graph = form.trace(ExportNetwork(pipeline.network, pipeline.size), faces.masked_face[:1].expand(2, -1, -1, -1))
    metadata = {**describe(pipeline), "to": kind, **form.details, "precision": precision}
    parity = _checked(form.open(graph.content(json.dumps(metadata))), reference, faces, kind)
    metadata["parity"] = {"faces_of": faces.source, **asdict(parity)}
    accuracy = None
    if precision != "fp32":
        graph, accuracy = _reduced(cast(OnnxGraph, graph), pipeline, precision, metadata)
    return Export(graph.content(json.dumps(metadata, allow_nan=False)), faces.source, parity, accuracy)


def reference_of(pipeline: Pipeline) -> Run:
    """What the pipeline itself gives."""

    def run(face: torch.Tensor) -> Outputs:
        output = pipeline.process_faces(face)
        return Outputs(output.completed_face, output.mask, output.embedding, covered_share(output.mask))

    return run


def _checked(run: Run, reference: Run, faces: Faces, kind: str) -> Parity:
    shown = torch.cat([faces.masked_face, faces.face[:2]])
    parity = compare(run_all(reference, shown), run_all(run, shown))
    if not parity.holds:
        raise ValueError(f"the {kind} file does not equal torch on {faces.source}, {parity}; allowed is {LIMIT:g}: nothing was written")
    return parity


def _reduced(graph: OnnxGraph, pipeline: Pipeline, precision: Precision, metadata: dict[str, Any]) -> tuple[Graph, Accuracy]:
    """The smaller graph, and what it costs, which is put into the metadata too."""
    validation, training = embedded_faces(pipeline, "val"), embedded_faces(pipeline, "train", _CALIBRATED_EVERY)
    smaller = REDUCTIONS[precision](graph, torch.cat([training.masked_face, training.face]))
    accuracy = measure(validation, reference_of(pipeline), FORMATS["onnx"].open(smaller.content(json.dumps(metadata))))
    calibrated = {"calibrated_on": training.source} if precision == "int8" else {}
    metadata["accuracy"] = {"faces_of": validation.source, **calibrated, **asdict(accuracy)}
    return smaller, accuracy
