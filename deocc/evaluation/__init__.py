"""Protocols and metrics: verification, identification, restoration; intervals; the results file, its tables, figures and report."""

from deocc.evaluation.bootstrap import (
    Interval,
    paired_bootstrap_accuracy,
    paired_bootstrap_eer,
    paired_bootstrap_mean_accuracy,
    paired_bootstrap_mean_eer,
)
from deocc.evaluation.coverage import by_coverage, coverage_deciles, decile_edges
from deocc.evaluation.distribution import FrechetDistance, KernelDistance
from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.figures import cmc_figure, loss_figure, panel_figure, panel_image, png_bytes, roc_figure, score_histogram
from deocc.evaluation.folds import FoldAccuracy, decisions, fold_accuracy
from deocc.evaluation.identification import cmc, rank1
from deocc.evaluation.intervals import Bounds, tar_intervals, wilson
from deocc.evaluation.mask_prediction import MaskPredictionMetric, mask_prediction_results
from deocc.evaluation.mcnemar import McNemar, mcnemar
from deocc.evaluation.perceptual import PerceptualDistance, perceptual_distance
from deocc.evaluation.protocol import AllPairs, Galleries, ListedPairs
from deocc.evaluation.report import write_report
from deocc.evaluation.restoration import RestorationMetric, psnr, ssim
from deocc.evaluation.results import build_restoration_results, build_results, clean_row, score_row, write_results
from deocc.evaluation.scores import read_scores, write_scores
from deocc.evaluation.tables import flat_scores, markdown_table, summary_table
from deocc.evaluation.verification import (
    PairScores,
    RocCurve,
    VerificationMetric,
    area_under_curve,
    equal_error_rate,
    pair_scores,
    roc_curve,
    true_accept_rate,
    verification_scores,
    within_scores,
)

__all__ = [
    "AllPairs",
    "Bounds",
    "EmbeddingBank",
    "EmbeddingSet",
    "FoldAccuracy",
    "FrechetDistance",
    "Galleries",
    "Interval",
    "KernelDistance",
    "ListedPairs",
    "MaskPredictionMetric",
    "McNemar",
    "PairScores",
    "PerceptualDistance",
    "RestorationMetric",
    "RocCurve",
    "VerificationMetric",
    "area_under_curve",
    "build_restoration_results",
    "build_results",
    "by_coverage",
    "clean_row",
    "cmc",
    "cmc_figure",
    "coverage_deciles",
    "decile_edges",
    "decisions",
    "equal_error_rate",
    "flat_scores",
    "fold_accuracy",
    "loss_figure",
    "markdown_table",
    "mask_prediction_results",
    "mcnemar",
    "pair_scores",
    "paired_bootstrap_accuracy",
    "paired_bootstrap_eer",
    "paired_bootstrap_mean_accuracy",
    "paired_bootstrap_mean_eer",
    "panel_figure",
    "panel_image",
    "perceptual_distance",
    "png_bytes",
    "psnr",
    "rank1",
    "read_scores",
    "roc_curve",
    "roc_figure",
    "score_histogram",
    "score_row",
    "ssim",
    "summary_table",
    "tar_intervals",
    "true_accept_rate",
    "verification_scores",
    "wilson",
    "within_scores",
    "write_report",
    "write_results",
    "write_scores",
]
