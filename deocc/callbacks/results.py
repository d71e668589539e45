"""Files of a test: results.json, pair scores (scores.npz, clean_scores.npz), masks.csv, report.html, panel.png; tables of dashboards."""

import shlex
import sys
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from matplotlib.figure import Figure
from torch import Tensor

from deocc import __version__, runs
from deocc.callbacks.calibration import THRESHOLDS, calibration_of
from deocc.callbacks.dashboards import log_figure, log_table, logged_step
from deocc.callbacks.panels import PanelCallback
from deocc.callbacks.provenance import FINGERPRINT, FingerprintCallback, global_seed, package_versions
from deocc.evaluation import (
    EmbeddingSet,
    FrechetDistance,
    KernelDistance,
    PairScores,
    PerceptualDistance,
    cmc_figure,
    flat_scores,
    loss_figure,
    panel_figure,
    roc_curve,
    roc_figure,
    score_histogram,
    summary_table,
    write_report,
    write_results,
    write_scores,
)
from deocc.evaluation.results import CLEAN_ROWS, ROWS
from deocc.evaluation.scores import CLEAN_SCORES, SCORES
from deocc.evaluation.tables import (
    Cells,
    difference_cells,
    is_listed,
    kind_cells,
    restoration_cells,
    row_cells,
    setting_cells,
)
from deocc.networks import create_teacher
from deocc.networks.embedders.registry import read_options

_SOURCES = {"completed_face": "given_mask", "completed_face_predicted_mask": "predicted_mask"}
"""By the key of a step's output, the source of the mask."""


class PerceptualCallback(pl.Callback):
    """Adds `perceptual`, `perceptual_covered`, `frechet` and `kernel` to the restoration that `ResultsCallback` writes down.

    Figures by different networks do not compare. A network whose features stage 1 was trained towards flatters it: to compare generators,
    take another one than the teacher.

    Args:
        network: a name of `deocc.networks.list_embedders`.
        weights: its weights file; default what its package ships.
        options: its template, size, color, mean and std, where they are not what `create_embedder` takes for granted.

    Raises:
        ValueError: an unknown network, or one without trained weights.
        FileNotFoundError: no weights file.
    """

    def __init__(
        self, network: str = "dlib_resnet", weights: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.network = create_teacher(network, weights, **read_options(options))
        self.scores: dict[str, dict[str, float]] = {}
        self._metrics: dict[str, tuple[PerceptualDistance, FrechetDistance, KernelDistance]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew, where the module is."""
        self.network.to(pl_module.device)
        self._metrics, self.scores = {}, {}

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in the completed faces of a batch whose clean faces and masks are known."""
        for key, source in _SOURCES.items():
            if "mask" in batch and key in (outputs or {}):
                distance, *crowds = self._metrics.setdefault(source, self._build(pl_module))
                distance.update(outputs[key], batch["face"], batch["mask"], batch["kind"])
                for crowd in crowds:
                    crowd.update(outputs[key], batch["face"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the figures together, over all processes."""
        for source, (distance, frechet, kernel) in self._metrics.items():
            self.scores[source] = {
                **distance.compute()["mean"],
                "frechet": float(frechet.compute()),
                "kernel": float(kernel.compute()),
            }

    def _build(self, pl_module: pl.LightningModule) -> tuple[PerceptualDistance, FrechetDistance, KernelDistance]:
        def maps(face: Tensor) -> list[Tensor]:
            return self.network.embed_with_features(face)[1]

        def embed(face: Tensor) -> Tensor:
            embedding: Tensor = self.network(face)
            return embedding

        device = pl_module.device
        crowds = FrechetDistance(embed, self.network.embedding_dim).to(device), KernelDistance(embed).to(device)
        return PerceptualDistance(maps).to(device), *crowds


MANIFEST = "masks.csv"
"""The file in a run folder that says which occluder lay on which test image by which seed."""
_PANEL = "Test people: clean, masked, completed"
_ROC = "Verification: clean gallery against masked probes"
_SCORES = "Similarities of the student"
_RANKS = "Identification: the person is among the most similar"
_TRAINING = "Training"
# A dashboard has the training's curves already.
_KEYS = {
    _PANEL: "test/panel",
    _ROC: "test/roc",
    _SCORES: "test/scores",
    _RANKS: "test/cmc",
}


class ResultsCallback(pl.Callback):
    """Writes down the `results` that a module leaves after its test, and the scores of its `embeddings` where it has them."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files to the run folder and print the table."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        results = {**cast(dict[str, Any], pl_module.results), **_provenance(trainer, pl_module)}
        _add_perceptual(trainer, results)
        if calibration := calibration_of(trainer, pl_module):
            results[THRESHOLDS] = calibration.plain()
        folder = Path(trainer.default_root_dir)
        write_results(folder / runs.RESULTS, results)
        embeddings = getattr(pl_module, "embeddings", {})
        scores, clean_scores = _scores(trainer, embeddings), _clean_scores(trainer, embeddings)
        for name, rows in ((SCORES, scores), (CLEAN_SCORES, clean_scores)):
            if rows:
                write_scores(folder / name, rows)
        trainer.datamodule.write_manifest(folder / MANIFEST)  # type: ignore[attr-defined]
        figures = _figures(trainer, results, scores)
        write_report(folder / runs.REPORT, results, figures)
        if _PANEL in figures:
            figures[_PANEL].savefig(folder / "panel.png")
        _log(trainer, results, figures)
        print(summary_table(results))
        print(f"results: {folder / runs.RESULTS}\nreport:  {folder / runs.REPORT}", flush=True)


def _training_data(trainer: pl.Trainer) -> dict[str, Any]:
    """The face set that the configuration of the tested run names, and its settings; nothing where there is no such file."""
    if not trainer.ckpt_path:
        return {}
    face_set, settings = runs.face_set_of(runs.run_folder_of(Path(trainer.ckpt_path)))
    return {"trained_on": face_set, "trained_on_settings": settings}


def _add_perceptual(trainer: pl.Trainer, results: dict[str, Any]) -> None:
    """What the network of a `PerceptualCallback` saw, beside PSNR and SSIM."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PerceptualCallback):
            for source, scores in callback.scores.items():
                results["restoration"][source] |= scores


def _fingerprint(trainer: pl.Trainer) -> dict[str, Any]:
    """What the tested checkpoint says of itself, and where the present state differs."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, FingerprintCallback)]  # type: ignore[attr-defined]
    return {FINGERPRINT: callbacks[0].account()} if callbacks else {}


def _provenance(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "module": type(pl_module).__name__,
        "settings": dict(pl_module.hparams),
        "seed": global_seed(),
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        **_training_data(trainer),
        "versions": {"deocc": __version__, **package_versions()},
        **_fingerprint(trainer),
    }


def _figures(trainer: pl.Trainer, results: dict[str, Any], scores: dict[str, PairScores]) -> dict[str, Figure]:
    """Panel, ROC and CMC curves, histogram of the student's scores, and the loss curves of the training behind the checkpoint."""
    figures: dict[str, Figure] = {}
    panels = [callback for callback in trainer.callbacks if isinstance(callback, PanelCallback) and callback.rows]  # type: ignore[attr-defined]
    for callback in panels:
        figures[_PANEL] = panel_figure(*callback.panel())
    figures |= _score_figures(scores)
    if ranks := {ROWS[name]: row["cmc"] for name, row in results["rows"].items() if "cmc" in row}:
        figures[_RANKS] = cmc_figure(ranks)
    if trainer.ckpt_path:
        metrics = runs.run_folder_of(Path(trainer.ckpt_path)) / "metrics.csv"
        if metrics.is_file():
            figures[_TRAINING] = loss_figure(metrics)
    return figures


def _scores(trainer: pl.Trainer, embeddings: dict[str, EmbeddingSet]) -> dict[str, PairScores]:
    """By row, the pairs of clean and masked faces that the test compared, as `build_results` compares them."""
    rows = [row for row in ROWS if row in embeddings]
    if not rows:
        return {}
    protocol = trainer.datamodule.protocol  # type: ignore[attr-defined]
    return {row: protocol.cross(_gallery(row, embeddings), embeddings[row]) for row in rows}


def _clean_scores(trainer: pl.Trainer, embeddings: dict[str, EmbeddingSet]) -> dict[str, PairScores]:
    """By row of `CLEAN_ROWS`, the pairs of clean faces that the test compared."""
    galleries = {row: f"gallery_{row.replace('_clean', '')}" for row in CLEAN_ROWS}
    rows = [row for row in CLEAN_ROWS if galleries[row] in embeddings]
    if not rows:
        return {}
    protocol = trainer.datamodule.protocol  # type: ignore[attr-defined]
    return {row: protocol.within(embeddings[galleries[row]]) for row in rows}


def _gallery(row: str, embeddings: dict[str, EmbeddingSet]) -> EmbeddingSet:
    """The clean faces that a row's probes are compared with: by predicted masks too, where the probes are and these are there."""
    name = f"gallery_{row.split('_')[0]}"
    predicted = f"{name}_predicted_mask"
    return embeddings[predicted] if row.endswith("_predicted_mask") and predicted in embeddings else embeddings[name]


def _score_figures(scores: dict[str, PairScores]) -> dict[str, Figure]:
    curves = {ROWS[row]: roc_curve(pairs.similarity, pairs.same)[:2] for row, pairs in scores.items()}
    figures = {_ROC: roc_figure(curves)} if curves else {}
    student = scores.get("student", scores.get("student_predicted_mask"))
    if student is not None:
        figures[_SCORES] = score_histogram(student.similarity, student.same)
    return figures


def _log(trainer: pl.Trainer, results: dict[str, Any], figures: dict[str, Figure]) -> None:
    """The numbers to every logger; figures and tables to the dashboards."""
    numbers = {
        name: value
        for row, scores in results["rows"].items()
        for name, value in flat_scores(scores, f"test/{row}").items()
    }
    for source, scores in results["restoration"].items():
        numbers |= flat_scores(scores, f"test/{source}")
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=logged_step(trainer))
    for caption, key in _KEYS.items():
        if caption in figures:
            log_figure(trainer, key, figures[caption])
    for key, cells in _tables(results).items():
        if cells[1]:
            log_table(trainer, f"test/{key}", cells)
    for logger in trainer.loggers:
        logger.save()


def _tables(results: dict[str, Any]) -> dict[str, Cells]:
    return {
        "recognition": setting_cells(results) if is_listed(results) else row_cells(results),
        "differences": difference_cells(results),
        "by_kind": kind_cells(results),
        "restoration": restoration_cells(results),
    }
