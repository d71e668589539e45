"""What a file says of itself, so that a program without deocc can feed it and read its answers."""

import hashlib
from typing import Any, Final

from deocc import __version__
from deocc.apps.pipeline import Pipeline
from deocc.apps.pipeline.card import licences
from deocc.apps.pipeline.folder import weight_bytes
from deocc.geometry import TEMPLATES

FORMAT_VERSION: Final = 1
"""Raised when a reader of an earlier version would misread the description or the outputs."""

_FORMAT: Final = "deocc export"
_ALIGNMENTS: Final = {"arcface112": "arcface", "dlib150": "dlib"}  # as `--aligned` calls them


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """The description of a pipeline in values that JSON has.

    `face` is the canonical crop: its side, its five points (eye, eye, nose, mouth corner, mouth corner; x, y in pixels, whose centres are
    whole numbers), its colours and range. `alignments` holds the same of other crops that faces may come in. `thresholds` is
    `deocc.evaluation.calibration.Calibration.plain`, None where the model was never tested; `training` what its test wrote of its data,
    None likewise.
    """
    config, thresholds = pipeline.config, pipeline.thresholds
    data = None if thresholds is None else thresholds.data
    return {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "deocc_version": __version__,
        "face": config["face"],
        "alignments": {name: _alignment(template) for name, template in _ALIGNMENTS.items()},
        "outputs": {
            "completed_face": "(B, 3, S, S), range and colours as the input",
            "mask": "(B, 1, S, S), 1 = covered",
            "embedding": "(B, D) unit vectors, whose dot product is the similarity",
            "covered": "(B,) covered share of the face, which tells masked from clean faces: thresholds.masked.limit",
        },
        "student": config["student"],
        "teacher": config["teacher"],
        "thresholds": None if thresholds is None else thresholds.plain(),
        "training": config.get("training"),
        "licences": config.get("licences") or licences(config["teacher"], data),
        "weights_sha256": config.get("weights_sha256") or _weights_hash(pipeline),
    }


def _alignment(template: str) -> dict[str, Any]:
    return {"size": TEMPLATES[template].size, "template": [list(point) for point in TEMPLATES[template].points]}


def _weights_hash(pipeline: Pipeline) -> str:
    """The hash that a model folder of these weights would have."""
    return hashlib.sha256(weight_bytes(pipeline.network)).hexdigest()
