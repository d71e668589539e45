"""`deocc doctor`: check the installation, a run and a data folder."""

from collections import Counter
from collections.abc import Iterator, Sequence

from deocc.commands import doctor_installation
from deocc.commands.arguments import PARSERS
from deocc.commands.doctor_installation import Context, Finding, run_check


def main(argv: Sequence[str]) -> int:
    """Run `deocc doctor`, printing each finding as soon as it is known; return 1 if something is wrong, else 0."""
    arguments = PARSERS["doctor"]().parse_args(argv)
    levels = Counter[str]()
    for finding in _find(Context(arguments.checkpoint, arguments.data)):
        levels[finding.level] += 1
        print(finding, flush=True)
    print(f"deocc doctor: OK {levels['OK']}, warning {levels['warning']}, wrong {levels['wrong']}", flush=True)
    return int(levels["wrong"] > 0)


def _find(context: Context) -> Iterator[Finding]:
    for check in doctor_installation.CHECKS:
        yield from run_check(check, context)
    if not context.usable:
        yield Finding("warning", "all other checks are left out", "install the needed packages first")
        return
    from deocc.commands import doctor_checks  # imports torch, which is known to work by now

    for check in doctor_checks.CHECKS:
        yield from run_check(check, context)
