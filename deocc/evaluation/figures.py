"""Figures of reports and dashboards, drawn without matplotlib's global state, so that any thread may draw.

Colours follow Okabe and Ito ("Color universal design", 2008) and are distinguishable for colour-blind readers; line
styles differ as well.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_GAP = 4  # pixels between the faces of a contact sheet
_DPI = 100


def roc_figure(curves: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw TAR over FAR, on a logarithmic axis from 1e-4: by title, far and tar (T,), both rising, of `roc_curve`."""
    figure, axes = _figure(7, 4.6)
    grid = np.geomspace(1e-4, 1, 400)
    for position, (title, (far, tar)) in enumerate(curves.items()):
        place = np.searchsorted(far.numpy(), grid, side="right") - 1
        axes.semilogx(grid, tar.numpy()[place], label=title, **_line(position))
    axes.set(xlabel="false accept rate", ylabel="true accept rate", xlim=(1e-4, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", fontsize=8)
    return figure


def cmc_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw cumulative match characteristics: by title, the shares of probes identified at rank 1, 2, ..."""
    figure, axes = _figure(7, 4)
    for position, (title, shares) in enumerate(curves.items()):
        axes.plot(range(1, len(shares) + 1), shares, label=title, marker="o", markersize=3, **_line(position))
    axes.set(xlabel="rank", ylabel="share of probes identified")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def score_histogram(similarity: Tensor, same: Tensor) -> Figure:
    """Draw the densities of the similarities (N,) of genuine and impostor pairs."""
    figure, axes = _figure(7, 3.6)
    bins = np.linspace(float(similarity.min()), float(similarity.max()) + 1e-6, 80).tolist()
    for position, (title, chosen) in enumerate((("different people", ~same), ("the same person", same))):
        values = similarity[chosen].numpy()
        axes.hist(values, bins=bins, density=True, alpha=0.6, label=title, color=COLOURS[position])
    axes.set(xlabel="similarity", ylabel="density")
    axes.legend(loc="upper left", fontsize=8)
    return figure


def loss_figure(metrics: Path) -> Figure:
    """Draw all values of a run's `metrics.csv` over the steps, those of one name in all stages in one panel.

    Raises:
        ValueError: no value was logged.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}  # by name and stage
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if "/" in key and value:
                    stage, _, name = key.partition("/")
                    series.setdefault(name, {}).setdefault(stage, []).append((float(row["step"] or 0), float(value)))
    if not series:
        raise ValueError("no values of the form stage/name were logged: train for more steps, or log more often")
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows), dpi=_DPI, layout="constrained")
    for panel, (name, stages) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(rows, columns, panel)
        for position, (stage, points) in enumerate(stages.items()):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            axes.plot(steps, values, label=stage, marker=marker, markersize=3, **_line(position))
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=7)
    return figure


def panel_figure(columns: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Draw a contact sheet with one row per face and one column per state, such as clean, masked, mask, completed.

    Columns are, by title, images (B, 3, H, W) in [-1, 1] or masks (B, 1, H, W) in [0, 1], of equal B, H and W; labels
    are those of the rows, such as the kind of occluder.
    """
    strips = []  # of the images of a column below each other on white, (B (H + gap), W + gap, 3)
    for images in columns.values():
        images = images.detach().cpu().float()
        unit = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else (images + 1) / 2
        padded = F.pad((unit.clamp(0, 1) * 255).round(), (_GAP // 2,) * 4, value=255.0)
        strips.append(padded.permute(0, 2, 3, 1).flatten(0, 1).byte().numpy())
    sheet = np.concatenate(strips, 1)
    height, width = sheet.shape[0] + 24, sheet.shape[1] + 110
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    # one pixel of the figure is one pixel of the sheet
    axes = figure.add_axes((110 / width, 0, sheet.shape[1] / width, sheet.shape[0] / height))
    axes.imshow(sheet, interpolation="nearest")
    axes.axis("off")
    for position, title in enumerate(columns):
        axes.text((position + 0.5) * sheet.shape[1] / len(columns), -6, title, ha="center", va="bottom", fontsize=8)
    for position, label in enumerate(labels):
        axes.text(-6, (position + 0.5) * sheet.shape[0] / len(labels), label, ha="right", va="center", fontsize=8)
    return figure


def panel_image(columns: Mapping[str, Tensor], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Draw `panel_figure` as (H, W, 3) pixels, for loggers."""
    return np.array(Image.open(io.BytesIO(png_bytes(panel_figure(columns, labels)))).convert("RGB"))


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_svg(figure: Figure, path: Path) -> None:
    """Write the same bytes for the same figure, so that one made again does not differ. Only for the main thread."""
    with mpl.rc_context({"svg.hashsalt": "deocc"}):
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _line(position: int) -> dict[str, Any]:
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": _STYLES[position % len(_STYLES)]}
