"""Evaluation: verification, identification, restoration, intervals, and the results file with its tables and report."""

import deocc._torchvision  # noqa: F401  # before torchmetrics
