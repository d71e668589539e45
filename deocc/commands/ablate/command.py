"""The command: read the plan, run what is missing, write down what is known."""

from collections.abc import Sequence

from deocc.commands.ablate.plan import list_jobs, read_plan, write_overlays
from deocc.commands.ablate.report import write_outcome
from deocc.commands.ablate.results import read_tests, summarise
from deocc.commands.ablate.runner import locked, run_jobs


def main(words: Sequence[str]) -> None:
    """Run `deocc ablate` with these words; `deocc ablate --help` lists them.

    Raises:
        ValueError: the plan holds what it may not.
        FileNotFoundError: a file that it names is not there.
        RuntimeError: some runs failed; the others ended, and what is known is written. Or another `deocc ablate` is at work in the folder.
        KeyboardInterrupt: after Ctrl-C, once no child is left.
    """
    plan = read_plan(words)
    with locked(plan.run) as lock:
        write_overlays(plan)
        jobs = list_jobs(plan)
        failed = run_jobs(jobs, plan.jobs, [lock])
        write_outcome(plan, summarise(plan, read_tests(plan, jobs)))
    if failed:
        name, reason = next(iter(failed.items()))
        others = f"; missing too: {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
        message = f"{len(failed)} of {len(jobs)} runs are missing, first {name} ({reason}){others}"
        raise RuntimeError(f"{message}; the same command runs what is missing")
