"""Evaluation: verification, identification, restoration, intervals, and the results file with its tables and report."""

import deocc._torchvision  # noqa: F401  # before torchmetrics
from deocc.evaluation.bootstrap import (
    Bounds,
    mcnemar,
    paired_bootstrap_eer,
    paired_bootstrap_mean_accuracy,
    paired_bootstrap_mean_eer,
    wilson,
)
from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.figures import (
    cmc_figure,
    loss_figure,
    panel_figure,
    panel_image,
    png_bytes,
    roc_figure,
    score_histogram,
)
from deocc.evaluation.perceptual import FrechetDistance, KernelDistance, PerceptualDistance
from deocc.evaluation.protocol import AllPairs, ListedPairs
from deocc.evaluation.report import write_report
from deocc.evaluation.restoration import MaskPredictionMetric, RestorationMetric, mask_prediction_results
from deocc.evaluation.results import build_restoration_results, build_results, score_row, write_results
from deocc.evaluation.scores import read_scores, write_scores
from deocc.evaluation.tables import flat_scores, summary_table
from deocc.evaluation.verification import (
    PairScores,
    decisions,
    equal_error_rate,
    fold_accuracy,
    roc_curve,
    verification_scores,
)

__all__ = [
    "AllPairs",
    "Bounds",
    "EmbeddingBank",
    "EmbeddingSet",
    "FrechetDistance",
    "KernelDistance",
    "ListedPairs",
    "MaskPredictionMetric",
    "PairScores",
    "PerceptualDistance",
    "RestorationMetric",
    "build_restoration_results",
    "build_results",
    "cmc_figure",
    "decisions",
    "equal_error_rate",
    "flat_scores",
    "fold_accuracy",
    "loss_figure",
    "mask_prediction_results",
    "mcnemar",
    "paired_bootstrap_eer",
    "paired_bootstrap_mean_accuracy",
    "paired_bootstrap_mean_eer",
    "panel_figure",
    "panel_image",
    "png_bytes",
    "read_scores",
    "roc_curve",
    "roc_figure",
    "score_histogram",
    "score_row",
    "summary_table",
    "verification_scores",
    "wilson",
    "write_report",
    "write_results",
    "write_scores",
]
