"""`deocc ablate`: train the variants of a plan over folds and seeds, compare them pair by pair, write table, figures and report."""

from deocc.apps.ablation.command import main
from deocc.apps.ablation.jobs import Job, fold_seeds, list_jobs
from deocc.apps.ablation.plan import Plan, Row, Stage, read_plan
from deocc.apps.ablation.runner import run_jobs

__all__ = ["Job", "Plan", "Row", "Stage", "fold_seeds", "list_jobs", "main", "read_plan", "run_jobs"]
