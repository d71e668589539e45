"""The command: one check after the other, each line as soon as it is known."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from deocc.commands.doctor import data as data_checks
from deocc.commands.doctor import installation
from deocc.commands.doctor.finding import NEEDED, Check, Finding, Level, examine


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def main(words: Sequence[str]) -> int:
    """Run `deocc doctor` with these words; `deocc doctor --help` lists them.

    Returns:
        0 = nothing is wrong, though there may be warnings; 1 = something is.

    Raises:
        ValueError: words that do not exist.
    """
    chosen = _parser().parse_args(words)
    counts: Counter[Level] = Counter()
    for finding in find(chosen.checkpoint, chosen.data):
        counts[finding.level] += 1
        print(finding, flush=True)
    print(f"deocc doctor: OK {counts['OK']}, warning {counts['warning']}, wrong {counts['wrong']}", flush=True)
    return int(counts["wrong"] > 0)


def find(run: Path | None, data: Path | None) -> Iterator[Finding]:
    """All findings, in the order of the report.

    Args:
        run: a run folder, a checkpoint file or a model folder; None = the newest run.
        data: a folder of faces to look at beside the usual ones.
    """
    for check in installation.CHECKS:
        yield from examine(check)
    broken: dict[str, str] = {}
    yield from examine(Check("imports", lambda: _imports(broken)))
    checks = (
        *installation.TORCH_STATE_CHECKS,
        *installation.SHIPPED_CHECKS,
        *installation.detectors_checks(),
        *installation.checks(),
        *data_checks.checks(data),
        *data_checks.checkpoint_checks(run, data),
    )
    for check in checks:
        yield from examine(check, broken)


def _imports(broken: dict[str, str]) -> Iterator[Finding]:
    """Whether what is installed can be imported; fills `broken` with the modules that cannot, and with `NEEDED`."""
    modules = installation.modules()
    broken |= installation.import_failures(list(modules.values()))
    for distribution, module in modules.items():
        if module in broken:
            yield Finding(
                "wrong", f"{distribution} cannot be imported: {broken[module]}", installation.reinstall(distribution)
            )
    if any(name not in modules or modules[name] in broken for name in installation.needed()):
        broken[NEEDED] = "one is absent or broken"
    elif not broken:
        yield Finding("OK", f"all {len(modules)} installed packages can be imported")


def _parser() -> _Parser:
    parser = _Parser(
        "deocc doctor",
        description="Say what is installed and works, what is wrong, and what mends it.",
        allow_abbrev=False,
    )
    where = "a run folder, a checkpoint file or a model folder (default: the newest run)"
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help=where)
    faces = "a folder of faces: CelebA, or aligned crops as PERSON/IMAGE; does it fit the checkpoint?"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=faces)
    return parser
