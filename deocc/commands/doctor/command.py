"""Command line of `deocc doctor`: prints each finding as soon as it is known."""

from collections import Counter
from collections.abc import Iterator, Sequence

from deocc.commands.arguments import doctor_parser
from deocc.commands.doctor import installation
from deocc.commands.doctor.findings import Context, Finding, run_check


def main(argv: Sequence[str]) -> int:
    """Run `deocc doctor`.

    Args:
        argv: arguments after `deocc doctor`; see `deocc doctor --help`.

    Returns:
        1 if something is wrong, else 0, even with warnings.

    Raises:
        ValueError: unknown argument.
    """
    arguments = doctor_parser().parse_args(argv)
    levels: Counter[str] = Counter()
    for finding in find(Context(arguments.checkpoint, arguments.data)):
        levels[finding.level] += 1
        print(finding, flush=True)
    print(f"deocc doctor: OK {levels['OK']}, warning {levels['warning']}, wrong {levels['wrong']}", flush=True)
    return int(levels["wrong"] > 0)


def find(context: Context) -> Iterator[Finding]:
    """Yield the findings of all checks; without the needed packages only those of the installation."""
    for check in installation.CHECKS:
        yield from run_check(check, context)
    if not context.usable:
        yield Finding("warning", "all other checks are left out", "install the needed packages first")
        return
    from deocc.commands.doctor import components, data, run  # import torch, which is known to work by now

    for check in (*components.CHECKS, *data.CHECKS, *run.CHECKS):
        yield from run_check(check, context)
