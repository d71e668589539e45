"""What a test leaves behind: results.json, report.html, panel.png, and a table in the terminal."""

import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger

from deocc import runs
from deocc.callbacks.panels import PanelCallback
from deocc.evaluation import (
    EmbeddingSet,
    flat_scores,
    loss_figure,
    pair_scores,
    panel_figure,
    roc_curve,
    roc_figure,
    score_histogram,
    summary_table,
    write_report,
    write_results,
)
from deocc.evaluation.results import ROWS

_PANEL = "Test people: clean, masked, completed"
_PACKAGES = ("deocc", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "timm", "numpy")


class ResultsCallback(pl.Callback):
    """Writes down the `results` that a module leaves after its test, with ROC curves of its `embeddings` where it has them."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files to the run folder and print the table."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        results = {**cast(dict[str, Any], pl_module.results), **_provenance(trainer, pl_module)}
        folder = Path(trainer.default_root_dir)
        write_results(folder / runs.RESULTS, results)
        figures = _figures(trainer, getattr(pl_module, "embeddings", {}))
        write_report(folder / runs.REPORT, results, figures)
        if _PANEL in figures:
            figures[_PANEL].savefig(folder / "panel.png")
        _log(trainer, results, figures)
        print(summary_table(results))
        print(f"results: {folder / runs.RESULTS}\nreport:  {folder / runs.REPORT}", flush=True)


def _provenance(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "module": type(pl_module).__name__,
        "settings": dict(pl_module.hparams),
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _figures(trainer: pl.Trainer, embeddings: dict[str, EmbeddingSet]) -> dict[str, Figure]:
    """Panel, ROC curves, histogram of the student's scores, and the loss curves of the training behind the checkpoint."""
    figures: dict[str, Figure] = {}
    panels = [callback for callback in trainer.callbacks if isinstance(callback, PanelCallback) and callback.rows]  # type: ignore[attr-defined]
    for callback in panels:
        figures[_PANEL] = panel_figure(*callback.panel())
    scores = {row: pair_scores(embeddings[f"gallery_{row.split('_')[0]}"], embeddings[row]) for row in ROWS if row in embeddings}
    if scores:
        curves = {ROWS[row]: roc_curve(pairs.similarity, pairs.same) for row, pairs in scores.items()}
        figures["Verification: clean gallery against masked probes"] = roc_figure({title: curve[:2] for title, curve in curves.items()})
    if "student" in scores:
        figures["Similarities of the student"] = score_histogram(scores["student"].similarity, scores["student"].same)
    if trainer.ckpt_path:
        metrics = runs.run_folder_of(Path(trainer.ckpt_path)) / "metrics.csv"
        if metrics.is_file():
            figures["Training"] = loss_figure(metrics)
    return figures


def _log(trainer: pl.Trainer, results: dict[str, Any], figures: dict[str, Figure]) -> None:
    """The rows to every logger, the figures to W&B."""
    for logger in trainer.loggers:
        for row, scores in results["rows"].items():
            logger.log_metrics(flat_scores(scores, f"test/{row}"), step=trainer.global_step)
        logger.save()
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({f"test/{caption}": wandb.Image(figure) for caption, figure in figures.items()})
