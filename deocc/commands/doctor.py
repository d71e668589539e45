"""`deocc doctor`: check the installation, a run and a data folder."""

from collections import Counter
from collections.abc import Iterable, Sequence

from deocc.commands import doctor_installation
from deocc.commands.arguments import PARSERS
from deocc.commands.doctor_installation import Context, Finding, run_check


def main(argv: Sequence[str]) -> int:
    """Run `deocc doctor`, printing each finding as soon as it is known; return 1 if something is wrong, else 0.

    Without the needed packages only the installation is checked.
    """
    arguments = PARSERS["doctor"]().parse_args(argv)
    context = Context(arguments.checkpoint, arguments.data)
    levels = Counter[str]()

    def report(findings: Iterable[Finding]) -> None:
        for finding in findings:
            levels[finding.level] += 1
            print(finding, flush=True)

    for check in doctor_installation.CHECKS:
        report(run_check(check, context))
    if context.usable:
        from deocc.commands import doctor_checks  # imports torch, which is known to work by now

        for check in doctor_checks.CHECKS:
            report(run_check(check, context))
    else:
        report([Finding("warning", "all other checks are left out", "install the needed packages first")])
    print(f"deocc doctor: OK {levels['OK']}, warning {levels['warning']}, wrong {levels['wrong']}", flush=True)
    return int(levels["wrong"] > 0)
