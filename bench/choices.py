"""What helps, on the validation people: `make choices` trains each variant of `configs/ablation/` and prints one table.

Each variant and seed is a `deocc fit` of its own, `runs/choices/SEED/VARIANT`. One that ended well is marked with a file `done` and not
trained again; one that did not is deleted and begins anew, so what was interrupted goes on where it stopped. The split is the
development one (16 people train, 8 validate); test people are not touched. The table goes to the terminal and to `runs/choices/table.md`.

`python bench/choices.py --seeds 0 1 2` trains every variant with several seeds and gives mean and standard deviation.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = Path("runs/choices")  # below the repository
DONE = "done"
DEVELOPMENT = ("--config", "configs/data/orl_development.yaml")

STAGE1 = {"inpaint": (), "inpaint_without_teacher": ("inpaint_without_teacher",)}
"""Stage 1 by name, and its overlays."""

STAGE2 = {
    "all_terms": ("all terms", "inpaint", ()),
    "masked": ("masked input, no completion", "inpaint", ("masked",)),
    "plain_faces": ("no blended faces in stage 2", "inpaint", ("plain_faces",)),
    "task_only": ("identity task loss alone", "inpaint", ("task_only",)),
    "instance_hard": ("instance relation alone, hard", "inpaint", ("instance_hard",)),
    "instance_soft": ("instance relation alone, soft (beta 0.5)", "inpaint", ("instance_soft",)),
    "identity_first": ("all terms, identity term foremost", "inpaint", ("identity_first",)),
    "both": ("completed and masked input, and the mask", "inpaint", ("both",)),
    "without_teacher": ("completed by a stage 1 without the teacher's terms", "inpaint_without_teacher", ()),
    "last_blocks": ("only the last three blocks trained", "inpaint", ("last_blocks",)),
}
"""Stage 2 by name: its title in the table, the stage 1 that it uses, and its overlays."""

COLUMNS = ("teacher_masked/eer", "teacher_completed/eer", "student/eer", "student/rank1", "student/tar@1e-2")


def fit(config: str, run: Path, overlays: tuple[str, ...], seed: int, *more: str) -> None:
    """Train one variant unless it is there as a whole."""
    if (ROOT / run / DONE).is_file():
        return
    if (ROOT / run).exists():
        shutil.rmtree(ROOT / run)
    files = [word for name in overlays for word in ("--config", f"configs/ablation/{name}.yaml")]
    command = [
        str(Path(sys.executable).with_name("deocc")),
        "fit",
        "--config",
        f"configs/{config}.yaml",
        *DEVELOPMENT,
        *files,
    ]
    seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
    subprocess.run([*command, "--run", str(run), *seeds, *more], cwd=ROOT, check=True)
    (ROOT / run / DONE).touch()


def last_values(run: Path) -> dict[str, float]:
    """The last validation's figures of a run, by column."""
    with (ROOT / run / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    merged: dict[str, str] = {key: value for row in rows for key, value in row.items()}
    return {column: float(merged[f"val/{column}"]) for column in COLUMNS}


def train_variant(name: str, seeds: list[int]) -> list[dict[str, float]]:
    """The figures of a stage-2 variant, a seed each; its stage 1 is trained first where it is missing."""
    _, stage1, overlays = STAGE2[name]
    values = []
    for seed in seeds:
        first, second = FOLDER / str(seed) / stage1, FOLDER / str(seed) / f"distill_{name}"
        fit("inpaint", first, STAGE1[stage1], seed)
        fit("distill", second, overlays, seed, "--model.init_args.inpainting_checkpoint", str(first))
        values.append(last_values(second))
    return values


def table_lines(seeds: list[int]) -> Iterator[str]:
    """The table in Markdown, in percent, a line at a time as the variants are trained."""
    title = "one seed" if len(seeds) == 1 else f"mean and standard deviation of {len(seeds)} seeds"
    yield f"Development split, validation people, percent, {title} ({', '.join(map(str, seeds))})\n"
    yield "| variant | " + " | ".join(COLUMNS) + " |\n| --- |" + " ---: |" * len(COLUMNS)
    for name, (shown, _, _) in STAGE2.items():
        values = train_variant(name, seeds)
        yield f"| {shown} | " + " | ".join(cell([100 * value[column] for value in values]) for column in COLUMNS) + " |"


def cell(values: list[float]) -> str:
    """The mean, and the standard deviation where there are several values."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main() -> None:
    """Train what is missing; print the table and write it down."""
    parser = argparse.ArgumentParser(
        description="Train and compare the variants of configs/ablation/ on the validation people."
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="every variant is trained once a seed (default: 0)"
    )
    lines = []
    for line in table_lines(parser.parse_args().seeds):
        print(line, flush=True)
        lines.append(line)
        (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
        (ROOT / FOLDER / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
