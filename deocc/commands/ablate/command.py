"""Command line of `deocc ablate`."""

from collections.abc import Sequence

from deocc.commands.ablate.jobs import list_jobs, write_overlays
from deocc.commands.ablate.plan import read_plan
from deocc.commands.ablate.report import write_outcome
from deocc.commands.ablate.runner import hold_folder, run_jobs
from deocc.commands.ablate.summary import read_tests, summarise


def main(argv: Sequence[str]) -> int:
    """Run `deocc ablate`: train and test what is missing, then write the tables of what is known.

    Args:
        argv: arguments after `deocc ablate`; see `deocc ablate --help`.

    Returns:
        0.

    Raises:
        ValueError: invalid plan.
        FileNotFoundError: a file that the plan names does not exist.
        RuntimeError: some runs failed, after all others have ended and the results are written; or another
            `deocc ablate` uses the folder.
        KeyboardInterrupt: after Ctrl-C, once all child processes have ended.
    """
    plan = read_plan(argv)
    with hold_folder(plan.run) as lock:
        write_overlays(plan)
        jobs = list_jobs(plan)
        failed = run_jobs(jobs, plan.jobs, keep_open=[lock])
        write_outcome(plan, summarise(plan, read_tests(plan, jobs)))
    if failed:
        name, reason = next(iter(failed.items()))
        others = f"; missing too: {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
        message = f"{len(failed)} of {len(jobs)} runs are missing, first {name} ({reason}){others}"
        raise RuntimeError(f"{message}; the same command runs what is missing")
    return 0
