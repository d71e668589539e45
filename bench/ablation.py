"""What helps, on the validation people: `make ablation` trains each variant of `configs/ablation/` and prints one table.

Each variant is a `deocc fit` of its own below `runs/ablation/`; one that is already there is not trained again, so an interrupted
ablation goes on where it stopped. The split is the development one (16 people train, 8 validate); test people are not touched.
"""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = Path("runs/ablation")
DEVELOPMENT = ("--config", "configs/data/orl_development.yaml")

STAGE1 = {"inpaint": (), "inpaint_without_teacher": ("inpaint_without_teacher",), "inpaint_plain_faces": ("plain_faces",)}
"""Stage 1 by name, and its overlays."""

STAGE2 = {
    "all terms": ("inpaint", ()),
    "masked input, no completion": ("inpaint", ("masked",)),
    "completed and masked input, and the mask": ("inpaint", ("both",)),
    "completed by a stage 1 without the teacher's terms": ("inpaint_without_teacher", ()),
    "no blended faces in stage 2": ("inpaint", ("plain_faces",)),
    "no blended faces in either stage": ("inpaint_plain_faces", ("plain_faces",)),
    "identity task loss alone": ("inpaint", ("task_only",)),
    "instance relation alone, hard": ("inpaint", ("instance_hard",)),
    "instance relation alone, soft (beta 0.5)": ("inpaint", ("instance_soft",)),
    "only the last three blocks trained": ("inpaint", ("last_blocks",)),
}
"""Stage 2 by title: the stage 1 that it uses, and its overlays."""

COLUMNS = ("teacher_masked/eer", "teacher_completed/eer", "student/eer", "student/rank1", "student/tar@1e-2")


def fit(config: str, run: Path, overlays: tuple[str, ...], *more: str) -> None:
    """Train one variant unless it is there."""
    if (ROOT / run / "checkpoints" / "last.ckpt").is_file():
        return
    files = [word for name in overlays for word in ("--config", f"configs/ablation/{name}.yaml")]
    command = [str(Path(sys.executable).with_name("deocc")), "fit", "--config", f"configs/{config}.yaml", *DEVELOPMENT, *files]
    subprocess.run([*command, "--run", str(run), *more], cwd=ROOT, check=True)


def last_values(run: Path) -> dict[str, float]:
    """The last validation's figures of a run."""
    with (ROOT / run / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    merged: dict[str, str] = {key: value for row in rows for key, value in row.items()}
    return {column: float(merged[f"val/{column}"]) for column in COLUMNS}


def main() -> None:
    """Train what is missing, print the table in Markdown, in percent."""
    for name, overlays in STAGE1.items():
        fit("inpaint", FOLDER / name, overlays)
    print("| variant | " + " | ".join(COLUMNS) + " |\n| --- |" + " ---: |" * len(COLUMNS))
    for number, (title, (stage1, overlays)) in enumerate(STAGE2.items()):
        run = FOLDER / f"distill-{number}"
        fit("distill", run, overlays, "--model.init_args.inpainting_checkpoint", str(FOLDER / stage1))
        print(f"| {title} | " + " | ".join(f"{100 * value:.2f}" for value in last_values(run).values()) + " |", flush=True)


if __name__ == "__main__":
    main()
