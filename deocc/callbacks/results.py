"""Results of a test: files in the run folder, the table in the terminal, and the dashboards."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import pytorch_lightning as pl
from matplotlib.figure import Figure

from deocc import __version__, runs
from deocc.callbacks.calibration import CalibrationCallback
from deocc.callbacks.dashboards import log_figure, log_table
from deocc.callbacks.judges import PerceptualCallback
from deocc.callbacks.loggers import logged_step
from deocc.callbacks.panels import PanelCallback
from deocc.callbacks.provenance import FINGERPRINT, FingerprintCallback, global_seed, package_versions
from deocc.evaluation import report
from deocc.evaluation.figures import cmc_figure, loss_figure, panel_figure, roc_figure, score_histogram
from deocc.evaluation.results import CLEAN_ROWS, ROWS, flat_scores
from deocc.evaluation.thresholds import THRESHOLDS
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, PairScores, roc_curve, write_scores
from deocc.files import write_json

# Captions of the report's figures and their keys on a dashboard
_KEYS: Final = {
    "Test people: clean, masked, completed": "test/panel",
    "Verification: clean gallery against masked probes": "test/roc",
    "Similarities of the student": "test/scores",
    "Identification: the person is among the most similar": "test/cmc",
}
_PANEL, _ROC, _HISTOGRAM, _RANKS = _KEYS

C = TypeVar("C", bound=pl.Callback)


class ResultsCallback(pl.Callback):
    """Write and log the `results` of a tested module, and what other callbacks, in any order, contribute to them.

    The run folder gets `results.json`, `report.html`, `masks.csv`, `panel.png`, `scores.npz` and `clean_scores.npz`.
    """

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the files, log to the dashboards and print the table."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder, tested = Path(trainer.default_root_dir), pl_module.results
        results = _collect_results(trainer, pl_module)
        clean = {row: pairs for row, pairs in tested.pairs.items() if row in CLEAN_ROWS}
        masked = {row: pairs for row, pairs in tested.pairs.items() if row not in CLEAN_ROWS}
        figures = _draw_figures(trainer, results, masked)
        write_json(folder / runs.RESULTS, results)
        for name, pairs in ((SCORES, masked), (CLEAN_SCORES, clean)):
            if pairs:
                write_scores(folder / name, pairs)
        trainer.datamodule.write_manifest(folder / "masks.csv")
        report.write_report(folder / runs.REPORT, results, figures)
        if _PANEL in figures:
            figures[_PANEL].savefig(folder / "panel.png")
        _log(trainer, results, figures)
        print(report.summary_table(results))
        if part := results.get("part_of_data"):
            print(f"computed on a part of the data: {runs.describe_part(part)}")
        print(f"results: {folder / runs.RESULTS}\nreport:  {folder / runs.REPORT}", flush=True)


def _collect_results(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """Return the content of `results.json`: the module's results and their provenance."""
    results: dict[str, Any] = {
        **pl_module.results.content,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "module": type(pl_module).__name__,
        "settings": dict(pl_module.hparams),
        "seed": global_seed(),
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "versions": {"deocc": __version__, **package_versions()},
    }
    if part := runs.part_of_data(trainer, "train", "test"):
        results["part_of_data"] = part
    if trainer.ckpt_path:
        run = runs.run_folder_of(Path(trainer.ckpt_path))
        results["trained_on"], results["trained_on_settings"] = runs.face_set_of(run)
    for fingerprint in _callbacks(trainer, FingerprintCallback):
        results[FINGERPRINT] = fingerprint.account()
    for perceptual in _callbacks(trainer, PerceptualCallback):
        for source, scores in perceptual.scores.items():
            results["restoration"][source] |= scores
    for calibrating in _callbacks(trainer, CalibrationCallback):
        if (calibration := calibrating.calibration(trainer, pl_module)) is not None:
            results[THRESHOLDS] = calibration.plain()
    return results


def _draw_figures(trainer: Any, results: dict[str, Any], scores: dict[str, PairScores]) -> dict[str, Figure]:
    """Return the figures of the report by caption, in their order."""
    figures: dict[str, Figure] = {}
    for panel in _callbacks(trainer, PanelCallback):
        if panel.rows:
            figures[_PANEL] = panel_figure(*panel.panel())
    if scores:
        figures[_ROC] = roc_figure({ROWS[row]: roc_curve(*pairs[:2])[:2] for row, pairs in scores.items()})
    student = scores.get("student", scores.get("student_predicted_mask"))
    if student is not None:
        figures[_HISTOGRAM] = score_histogram(student.similarity, student.same)
    if ranks := {ROWS[name]: row["cmc"] for name, row in results["rows"].items() if "cmc" in row}:
        figures[_RANKS] = cmc_figure(ranks)
    metrics = runs.run_folder_of(Path(trainer.ckpt_path)) / "metrics.csv" if trainer.ckpt_path else None
    if metrics is not None and metrics.is_file():
        figures["Training"] = loss_figure(metrics)
    return figures


def _log(trainer: pl.Trainer, results: dict[str, Any], figures: Mapping[str, Figure]) -> None:
    """Log the numbers to every logger, and figures and tables to the dashboards."""
    numbers: dict[str, float] = {}
    for name, scores in {**results["rows"], **results["restoration"]}.items():
        numbers |= flat_scores(scores, f"test/{name}")
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=logged_step(trainer))
    for caption, key in _KEYS.items():
        if caption in figures:
            log_figure(trainer, key, figures[caption])
    tables = {
        "recognition": report.recognition_cells(results),
        "differences": report.difference_cells(results),
        "by_kind": report.kind_cells(results),
        "restoration": report.restoration_cells(results),
    }
    for name, cells in tables.items():
        if cells[1]:
            log_table(trainer, f"test/{name}", cells)
    for logger in trainer.loggers:
        logger.save()


def _callbacks(trainer: Any, kind: type[C]) -> list[C]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]
