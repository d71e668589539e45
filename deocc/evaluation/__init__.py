"""Protocols and metrics: verification, identification, restoration; intervals; the results file, its tables, figures and report."""

from deocc.evaluation.bootstrap import Interval, paired_bootstrap_eer
from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.figures import loss_figure, panel_figure, panel_image, png_bytes, roc_figure, score_histogram
from deocc.evaluation.identification import cmc, rank1
from deocc.evaluation.report import write_report
from deocc.evaluation.restoration import RestorationMetric, psnr, ssim
from deocc.evaluation.results import build_restoration_results, build_results, clean_row, score_row, write_results
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
    "EmbeddingBank",
    "EmbeddingSet",
    "Interval",
    "PairScores",
    "RestorationMetric",
    "RocCurve",
    "VerificationMetric",
    "area_under_curve",
    "build_restoration_results",
    "build_results",
    "clean_row",
    "cmc",
    "equal_error_rate",
    "flat_scores",
    "loss_figure",
    "markdown_table",
    "pair_scores",
    "paired_bootstrap_eer",
    "panel_figure",
    "panel_image",
    "png_bytes",
    "psnr",
    "rank1",
    "roc_curve",
    "roc_figure",
    "score_histogram",
    "score_row",
    "ssim",
    "summary_table",
    "true_accept_rate",
    "verification_scores",
    "within_scores",
    "write_report",
    "write_results",
]
