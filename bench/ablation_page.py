"""Write the page "Ablation on LFW" and its files: `python -m bench.ablation_page`, after `deocc ablate`."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deocc import runs
from deocc.commands.ablate_summary import read_metrics
from deocc.evaluation.report import points
from deocc.files import write_file, write_json

RUN = Path("runs/lfw/ablation")
PAGES = Path(__file__).parent.parent / "docs/pages"
PAGE = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
_FIGURES = ("bars.svg", "bars.png", "losses.svg", "losses.png")
_LEFT_OUT = ("plan",)  # paths of the machine


def claim_lines(summary: Mapping[str, Any]) -> str:
    """Return one line for each claim: what its intervals of the EER say, with the given and the predicted mask."""
    lines = []
    for pair in summary["comparisons"]:
        found = []
        for mask, figures in pair.get("masks", {}).items():
            eer = figures["eer"]
            interval = f"{points(eer['estimate'])} points, {points(eer['low'])} to {points(eer['high'])}"
            source = "" if mask == "none" else f"{mask} mask: "
            found.append(f"{source}**{figures['verdict']}** (EER {interval})")
        text = "; ".join(found) or f"unknown, {pair['runs']} of {pair['of']} runs"
        lines.append(f"- {pair['claim']} ({pair['first']} against {pair['second']}): {text}.\n")
    return "".join(lines)


def scope_sentence(summary: Mapping[str, Any], folds: Sequence[str]) -> str:
    """Return which part of the plan is known; empty if all is."""
    if list(summary["folds"]) == list(folds):
        return ""
    return f"**Only half {' and '.join(summary['folds'])} has been tested: all figures are those of its pairs.** "


def length_sentence(run: Path) -> str:
    """Return the length of the trainings by the configuration of the first run and the metrics of all."""
    folders = sorted(path.parent for path in run.glob(f"*/{runs.RESULTS}"))
    trainer = yaml.safe_load((folders[0] / runs.CONFIG).read_text(encoding="utf-8"))["trainer"]
    steps = sorted({max(step for step, _, _ in read_metrics(folder)) for folder in folders})
    lengths = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
    return f"Each student was trained for {trainer['max_epochs']} epochs (last logged step {lengths}). "


def write_page(run: Path, pages: Path) -> Path:
    """Write the page, its figures and its numbers; return the path of the page.

    Raises:
        FileNotFoundError: the ablation has written no tables.
    """
    summary = json.loads((run / "ablation.json").read_text(encoding="utf-8"))
    table = (run / "table.md").read_text(encoding="utf-8").strip()
    folder = pages / "lfw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FIGURES:
        shutil.copyfile(run / name, folder / f"ablation_{name}")
    content = {key: value for key, value in summary.items() if key not in _LEFT_OUT}
    content["runs"] = {
        name: {key: value for key, value in of.items() if key != "command"} for name, of in summary["runs"].items()
    }
    write_json(folder / "ablation.json", content)
    plan = yaml.safe_load(runs.find_config("lfw/ablation").read_text(encoding="utf-8"))
    text = PAGE.format(
        scope=scope_sentence(summary, list(plan["folds"])),
        length=length_sentence(run),
        claims=claim_lines(summary),
        table=table,
    )
    write_file(pages / "ablation.md", text)
    return pages / "ablation.md"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ablation_page", description="Write the page Ablation.")
    parser.add_argument("--run", type=Path, default=RUN, help=f"the folder of the ablation (default: {RUN})")
    parser.add_argument("--pages", type=Path, default=PAGES, help="where to write (default: docs/pages)")
    chosen = parser.parse_args(argv)
    try:
        print(write_page(chosen.run, chosen.pages))
    except (FileNotFoundError, ValueError) as error:
        parser.error(f"{error}: run deocc ablate --config lfw/ablation first, or name its folder with --run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
