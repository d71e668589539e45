"""Write the page "Results on LFW" and its figures: `python -m bench.lfw_page`, after `python -m bench.lfw`.

Figures over both halves are means of the halves, because each has its own model and thresholds. Intervals come from a
bootstrap that draws people within each half, or are Wilson intervals of counted shares.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import lfw_figures
from bench.lfw import RUNS, TEST_FOLDS
from deocc import runs
from deocc.evaluation.bootstrap import bootstrap_figures, paired_interval, wilson
from deocc.evaluation.report import MISSING, markdown_cells, number, percent, points
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, PairScores, check_same_pairs, read_scores
from deocc.inference.model_folder import FOLDER

PAGES = Path(__file__).parent.parent / "docs/pages"
TITLES = {
    "teacher_clean": "teacher, bare faces",
    "teacher_clean_predicted_mask": "teacher, bare faces, predicted mask",
    "student_clean": "student, bare faces",
    "student_clean_predicted_mask": "student, bare faces, predicted mask",
    "teacher_masked": "teacher, masked faces",
    "teacher_completed": "teacher, completed by the given mask",
    "teacher_completed_predicted_mask": "teacher, completed by the predicted mask",
    "student": "student, given mask",
    "student_predicted_mask": "student, predicted mask",
}
DIFFERENCES = (
    ("student_predicted_mask", "teacher_masked"),
    ("student", "teacher_masked"),
    ("teacher_completed_predicted_mask", "teacher_masked"),
    ("student_predicted_mask", "student"),
    ("student_clean_predicted_mask", "teacher_clean"),
    ("student_clean", "teacher_clean"),
)
"""Rows that are subtracted from each other."""
CURVES = ("teacher_clean", "student_clean_predicted_mask", "teacher_masked", "student", "student_predicted_mask")
BARS = ("teacher_masked", "student", "student_predicted_mask")
RATIOS = (("student_predicted_mask", "teacher_masked"), ("student_predicted_mask", "student"))
COMMAND = "python -m bench.lfw_page"
_REPLICATES = 1000
_FOLDS = {"a": "1-5", "b": "6-10"}  # counted from 1, as in the list of pairs
_NETWORK_FIGURES = {"perceptual_covered": "LPIPS form", "frechet": "FID form", "kernel": "KID form"}

ONE_HALF = "**Only one half has been tested: all figures are those of its pairs.**\n\n"
BY_TEACHER = " A face without a mask is embedded by the teacher, also in the rows of the student."
PAGE = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
PANEL = """\
![Clean, masked, predicted mask and completed faces of people never seen in training](lfw/panel.jpg)

*The first test people under each kind, by the predicted mask; not selected. Photographs: LFW. Made by `{command}`.*

"""
THRESHOLDS = """\
## Thresholds

False-accept rates on test people of the thresholds that were calibrated on validation people, by predicted masks.

{thresholds}"""


@dataclass(frozen=True)
class Half:
    """Results of the tests of one half.

    Attributes:
        name: "a" or "b".
        results: `results.json` of the student's run.
        generator: restoration by the generator's run with given masks; empty if it was not tested.
        pairs: pair scores by row.
        epochs: length of the training of each stage, and whether it started from an earlier model.
    """

    name: str
    results: dict[str, Any]
    generator: dict[str, Any]
    pairs: dict[str, PairScores]
    epochs: dict[str, str]

    def row(self, name: str) -> dict[str, Any]:
        """Return the figures of a row; empty if it was not tested."""
        return dict(self.results["rows"].get(name, {}))


def read_halves(folder: Path) -> list[Half]:
    """Read the tested halves below a folder that `python -m bench.lfw` wrote.

    Raises:
        FileNotFoundError: no half was tested, or the scores of one are missing.
        ValueError: a test compared no listed pairs, or both halves tested the same fold.
    """
    halves = []
    for name in TEST_FOLDS:
        run, inpaint = folder / name / "distill", folder / name / "inpaint" / runs.RESULTS
        file = run / runs.RESULTS
        if not file.is_file():
            continue
        results = json.loads(file.read_text())
        if "accuracy" not in results["rows"]["teacher_clean"]:
            raise ValueError(f"{file} has no accuracy over folds: test the run on LFW, `python -m bench.lfw`")
        generator = json.loads(inpaint.read_text())["restoration"].get("given_mask", {}) if inpaint.is_file() else {}
        pairs = read_scores(run / SCORES) | read_scores(run / CLEAN_SCORES)
        halves.append(Half(name, results, generator, pairs, read_epochs(folder / name)))
    if not halves:
        raise FileNotFoundError(
            f"no tested run in {folder}/*/distill: run `python -m bench.lfw` first, or give another folder as --runs"
        )
    folds = [fold for half in halves for fold in half.pairs["teacher_masked"].fold.unique().tolist()]  # type: ignore[union-attr]
    if len(set(folds)) < len(folds):
        raise ValueError(f"both halves in {folder} tested the same folds: train them again with `python -m bench.lfw`")
    return halves


def read_epochs(half: Path) -> dict[str, str]:
    """Return the length of each stage's training, such as "9" or "8 from an earlier model"."""
    epochs = {}
    for stage in ("segment", "inpaint", "distill"):
        file = half / stage / runs.CONFIG
        if file.is_file():
            config = yaml.safe_load(file.read_text())
            continued = (config.get("model", {}).get("init_args") or {}).get("initial_weights") is not None
            epochs[stage] = f"{config['trainer']['max_epochs']}{' from an earlier model' if continued else ''}"
    return epochs


def length_sentence(halves: Sequence[Half]) -> str:
    """Return how long each stage was trained; empty if that is not known."""
    names = {"segment": "mask predictor", "inpaint": "generator", "distill": "student"}
    lengths = []
    for half in halves:
        listed = ", ".join(f"{names[stage]} {count}" for stage, count in half.epochs.items())
        lengths += [f"half {half.name}: {listed}"] if listed else []
    return f"Epochs of training (`--trainer.max_epochs`), {'; '.join(lengths)}. " if lengths else ""


def precision_sentence(halves: Sequence[Half]) -> str:
    """Return in which precision the tests computed their networks; empty for float32."""
    reduced = [half.name for half in halves if half.results.get("frozen_precision") == "bfloat16"]
    return f"The networks were tested in bfloat16 (half {' and '.join(reduced)}). " if reduced else ""


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    given = list(values)
    known = [value for value in given if value is not None]
    return statistics.fmean(known) if known and len(known) == len(given) else None


def accuracy_cell(halves: Sequence[Half], row: str) -> str:
    """Return the mean accuracy over all folds of all halves and its standard error."""
    folds = [share for half in halves for share in half.row(row).get("accuracy", {}).get("accuracies", [])]
    if len(folds) < 2:
        return MISSING
    return f"{percent(statistics.fmean(folds))} ± {percent(statistics.stdev(folds) / math.sqrt(len(folds)))}"


def tar_cell(halves: Sequence[Half], row: str, rate: str) -> str:
    """Return the mean TAR of the halves at one FAR, with the Wilson interval over all pairs of one person."""
    rows = [half.row(row) for half in halves]
    parts = [(each["tar_intervals"][rate]["tar"], each["pairs"]["same"]) for each in rows if each]
    if not parts or any(tar is None for tar, _ in parts):
        return MISSING
    trials = sum(same for _, same in parts)
    low, high = wilson(round(sum(tar * same for tar, same in parts)), trials)
    return f"{percent(statistics.fmean(tar for tar, _ in parts))} ({percent(low)} to {percent(high)})"


def eer(halves: Sequence[Half], row: str) -> float | None:
    return mean(half.row(row).get("eer") for half in halves)


def recognition_table(halves: Sequence[Half]) -> str:
    body = []
    for row, title in TITLES.items():
        if eer(halves, row) is not None:
            tar = [tar_cell(halves, row, rate) for rate in ("1e-2", "1e-3")]
            body.append([title, accuracy_cell(halves, row), percent(eer(halves, row)), *tar])
    return markdown_cells((["", "accuracy %", "EER %", "TAR % at FAR 1 %", "TAR % at FAR 0.1 %"], body))


def difference_table(halves: Sequence[Half], replicates: int) -> str:
    """Return differences of accuracy and EER in percentage points, with 95 % intervals."""
    body = []
    for first, second in DIFFERENCES:
        if any(not {first, second} <= half.pairs.keys() for half in halves):
            continue
        for half in halves:
            check_same_pairs(half.pairs[first], half.pairs[second])
        parts = ([[half.pairs[row]] for half in halves] for row in (first, second))
        one, other = (bootstrap_figures(part, replicates, names=("accuracy", "eer")) for part in parts)
        intervals = [paired_interval(one[name], other[name]) for name in one]
        cells = [f"{points(each.estimate)} ({points(each.low)} to {points(each.high)})" for each in intervals]
        body.append([f"{TITLES[first]} minus {TITLES[second]}", *cells])
    return markdown_cells((["", "accuracy, points", "EER, points"], body))


def ratio_lines(halves: Sequence[Half]) -> str:
    """Return ratios of equal error rates, one per line."""
    lines = []
    for first, second in RATIOS:
        above, below = eer(halves, first), eer(halves, second)
        if above is not None and below:
            lines.append(f'- EER of "{TITLES[first]}" over EER of "{TITLES[second]}": **{above / below:.2f}**\n')
    return "".join(lines)


def unseen_kinds(halves: Sequence[Half]) -> list[str]:
    results = halves[0].results
    return [kind for kind in results["kinds"] if kind not in results["training_kinds"]]


def kind_rates(halves: Sequence[Half]) -> dict[str, dict[str, float]]:
    """Return the mean EER of the halves by title of `BARS` and kind."""
    rates: dict[str, dict[str, float]] = {}
    for row in BARS:
        for kind in halves[0].results["per_kind"]:
            parts = [half.results["per_kind"].get(kind, {}).get("rows", {}).get(row, {}) for half in halves]
            rate = mean(part.get("eer") for part in parts)
            if rate is not None:
                rates.setdefault(TITLES[row], {})[kind] = rate
    return rates


def kind_table(halves: Sequence[Half]) -> str:
    """Return EER, ratio of student to teacher, and mask quality by kind."""
    rates, unseen = kind_rates(halves), unseen_kinds(halves)
    teacher, student = TITLES["teacher_masked"], TITLES["student_predicted_mask"]
    body = []
    for kind in halves[0].results["per_kind"]:
        above, below = rates.get(student, {}).get(kind), rates.get(teacher, {}).get(kind)
        ratio = above / below if above is not None and below else None
        masks = [half.results.get("mask_prediction", {}).get("per_kind", {}).get(kind, {}) for half in halves]
        fit = [percent(mean(each.get(name) for each in masks)) for name in ("iou", "recall")]
        title = f"**{kind}** (never trained on)" if kind in unseen else kind
        body.append([title, *[percent(series.get(kind)) for series in rates.values()], number(ratio, 2), *fit])
    header = ["", *[f"EER %, {title}" for title in rates], "ratio to the teacher", "mask IoU %", "mask recall %"]
    return markdown_cells((header, body))


def bare_sentence(halves: Sequence[Half]) -> str:
    """Return the share of bare faces for which a mask is predicted, with its interval."""
    shares = [half.results.get("mask_prediction", {}).get("bare", {}).get("found") for half in halves]
    if None in shares:
        return ""
    images = sum(int(half.results["images"]) for half in halves)
    found = round(sum(share * int(half.results["images"]) for share, half in zip(shares, halves, strict=True)))
    low, high = wilson(found, images)
    return (
        f"Of {images:,} bare faces of test people, {found:,} get any mask: {percent(found / images)} % "
        f"(95 % interval {percent(low)} to {percent(high)}). The others are left as they are.\n"
    )


def restoration_table(halves: Sequence[Half]) -> str:
    """Return PSNR and SSIM inside the mask, and the feature distances."""
    sources = {"completed by the generator at its own side, given mask": [half.generator for half in halves]}
    for masks in ("given", "predicted"):
        title = f"completed at the student's side, {masks} mask"
        sources[title] = [half.results["restoration"].get(f"{masks}_mask", {}) for half in halves]
    body = []
    for title, parts in sources.items():
        if all(parts):
            psnr, ssim = (mean(part.get(key) for part in parts) for key in ("psnr_covered", "ssim_covered"))
            distances = [mean(part.get(key) for part in parts) for key in _NETWORK_FIGURES]
            network = [MISSING if value is None else f"{value:.4g}" for value in distances]
            body.append([title, number(psnr, 2), number(ssim, 3), *network])
    return markdown_cells((["", "PSNR dB", "SSIM", *_NETWORK_FIGURES.values()], body))


def threshold_table(halves: Sequence[Half]) -> str:
    """Return the false-accept rates on test people of the calibrated thresholds; empty without thresholds."""
    rates: dict[tuple[str, float], dict[str, str]] = {}
    for half in halves:
        for condition, row in half.results.get("thresholds", {}).get("thresholds", {}).items():
            for entry in row:
                measured = entry.get("test")
                if measured:
                    cell = f"{100 * measured['false_accept_rate']:.3g}"
                    if measured.get("interval"):
                        low, high = measured["interval"]
                        cell += f" ({100 * low:.3g} to {100 * high:.3g})"
                    rates.setdefault((condition, entry["target"]), {})[half.name] = cell
    if not rates:
        return ""
    names = [half.name for half in halves]
    body = [
        [condition, f"{100 * target:g}", *[cells.get(name, MISSING) for name in names]]
        for (condition, target), cells in rates.items()
    ]
    return markdown_cells((["pairs", "target FAR %", *[f"FAR % of half {name} (95 %)" for name in names]], body))


def page(halves: Sequence[Half], replicates: int, panel: bool) -> str:
    """Return the page in Markdown, with the panel figure if `panel` is true."""
    kinds, thresholds = halves[0].results["kinds"], threshold_table(halves)
    routed = all(half.results["settings"].get("bare_faces") == "teacher" for half in halves)
    text = PAGE.format(
        command=COMMAND,
        missing="" if len(halves) == len(TEST_FOLDS) else ONE_HALF,
        pairs=sum(len(half.pairs["teacher_masked"].same) for half in halves),
        people=sum(half.results["rows"]["teacher_clean"]["people"] for half in halves),
        tested=" and ".join(f"half {half.name} (folds {_FOLDS[half.name]})" for half in halves),
        number_of_kinds=len(kinds),
        kinds=", ".join(kinds),
        by_teacher=BY_TEACHER if routed else "",
        lengths=length_sentence(halves) + precision_sentence(halves),
        recognition=recognition_table(halves),
        ratios=ratio_lines(halves),
        replicates=replicates,
        differences=difference_table(halves, replicates),
        unseen=", ".join(unseen_kinds(halves)) or "none of the kinds",
        by_kind=kind_table(halves),
        bare=bare_sentence(halves),
        restoration=restoration_table(halves),
    )
    text += PANEL.format(command=COMMAND) if panel else ""
    text += THRESHOLDS.format(thresholds=thresholds) if thresholds else ""
    return text.rstrip() + "\n"


def write_page(halves: Sequence[Half], pages: Path, replicates: int = _REPLICATES) -> Path:
    """Write `lfw.md`, its ROC and its bars; return the path of the page. An existing panel is included."""
    folder = pages / "lfw"
    folder.mkdir(parents=True, exist_ok=True)
    known = [row for row in CURVES if all(row in half.pairs for half in halves)]
    curves = {TITLES[row]: [half.pairs[row] for half in halves] for row in known}
    lfw_figures.write_roc(folder / "roc.svg", curves)
    lfw_figures.write_kind_bars(folder / "kinds.svg", kind_rates(halves), unseen_kinds(halves))
    path = pages / "lfw.md"
    path.write_text(page(halves, replicates, (folder / "panel.jpg").is_file()), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Write docs/pages/lfw.md and its figures from tested runs."
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"the folder that bench.lfw wrote to (default: {RUNS})")
    parser.add_argument("--data", help="the folder of LFW, for the panel (default: that of the runs)")
    parser.add_argument("--pages", type=Path, default=PAGES, help="where to write (default: docs/pages)")
    chosen = parser.parse_args(argv)
    try:
        halves = read_halves(chosen.runs)
        (chosen.pages / "lfw").mkdir(parents=True, exist_ok=True)
        run = chosen.runs / halves[0].name / "distill"
        if (run / FOLDER).is_dir():  # `bench/lfw_runs.tar.xz` has none
            lfw_figures.write_panel(chosen.pages / "lfw/panel.jpg", run, chosen.data)
        else:
            print(f"panel: not drawn, since there is no {run / FOLDER}")
        print(f"page: {write_page(halves, chosen.pages)}")
    except (FileNotFoundError, ValueError) as error:
        print(f"bench.lfw_page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
