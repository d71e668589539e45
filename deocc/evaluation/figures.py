"""Figures of a report, drawn without matplotlib's global state, so that any thread or process may draw.

Colours are those of Okabe and Ito ("Color universal design", 2008), which colour-blind readers can tell apart; lines differ in style too.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_GAP = 4  # pixels between the faces of a contact sheet
_DPI = 100

Metrics = Sequence[Mapping[str, float | str | None]]
"""Rows of logged values, each with `step`; what a row did not log is absent, None or an empty string."""


def roc_figure(curves: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """TAR over FAR, the latter logarithmic from 1e-4.

    Args:
        curves: by title, far and tar (T,), both rising, as of `deocc.evaluation.roc_curve`.
    """
    figure, axes = _figure(7, 4.6)
    grid = np.geomspace(1e-4, 1, 400)
    for position, (title, (far, tar)) in enumerate(curves.items()):
        place = np.searchsorted(far.numpy(), grid, side="right") - 1
        axes.semilogx(
            grid, tar.numpy()[place], label=title, color=_colour(position), linestyle=_STYLES[position % len(_STYLES)]
        )
    axes.set(xlabel="false accept rate", ylabel="true accept rate", xlim=(1e-4, 1), ylim=(0, 1.01))
    axes.legend(loc="upper left", fontsize=8)
    return figure


def cmc_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Cumulative match characteristics: by title, the share of probes whose person is among the 1, 2, ... most similar."""
    figure, axes = _figure(7, 4)
    for position, (title, shares) in enumerate(curves.items()):
        ranks = range(1, len(shares) + 1)
        style = _STYLES[position % len(_STYLES)]
        axes.plot(ranks, shares, label=title, color=_colour(position), linestyle=style, marker="o", markersize=3)
    axes.set(xlabel="rank", ylabel="share of probes identified")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def score_histogram(similarity: Tensor, same: Tensor, threshold: float | None = None) -> Figure:
    """How the similarities (N,) of pairs of one person and of two spread, each kind's area being 1; `threshold` is marked."""
    figure, axes = _figure(7, 3.6)
    bins = np.linspace(float(similarity.min()), float(similarity.max()) + 1e-6, 80)
    for position, (title, chosen) in enumerate((("different people", ~same), ("the same person", same))):
        axes.hist(
            similarity[chosen].numpy(),
            bins=bins.tolist(),
            density=True,
            alpha=0.6,
            label=title,
            color=_colour(position),
        )
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="similarity", ylabel="density")
    axes.legend(fontsize=8)
    return figure


def loss_figure(metrics: Path | str | Metrics) -> Figure:
    """Every logged value over the steps, a panel a value; what training, validation and test call by one name shares a panel.

    Args:
        metrics: the `metrics.csv` of a run, or its rows; the keys are `stage/name`.

    Raises:
        FileNotFoundError: no file there.
        ValueError: nothing was logged.
    """
    series = _series(_read(metrics) if isinstance(metrics, str | Path) else metrics)
    names = list(dict.fromkeys(key.partition("/")[2] for key in series))
    if not names:
        raise ValueError("no values of the form stage/name were logged: train for more steps, or log more often")
    columns = min(3, len(names))
    figure = Figure(figsize=(3.4 * columns, 2.5 * math.ceil(len(names) / columns)), dpi=_DPI, layout="constrained")
    for position, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, position + 1)
        _draw_series(axes, name, {key: points for key, points in series.items() if key.partition("/")[2] == name})
    return figure


def panel_figure(columns: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """A contact sheet: a row a face, a column a state of it, such as clean, masked, mask, completed.

    Args:
        columns: by title, images (B, 3, H, W) in [-1, 1] or masks (B, 1, H, W) in [0, 1], of equal B, H and W.
        labels: B words beside the rows, such as the kind of occluder.

    Raises:
        ValueError: the shapes differ, or there are not B labels.
    """
    shapes = {title: (len(images), *images.shape[2:]) for title, images in columns.items()}
    if len(set(shapes.values())) != 1 or any(shape[0] != len(labels) for shape in shapes.values()):
        raise ValueError(
            f"expected columns of equal B, H and W and a label a row, got {shapes} and {len(labels)} labels"
        )
    sheet = np.concatenate([_column(images) for images in columns.values()], 1)
    height, width = sheet.shape[0] + 24, sheet.shape[1] + 110
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes(
        (110 / width, 0, sheet.shape[1] / width, sheet.shape[0] / height)
    )  # one pixel of the figure a pixel of the sheet
    axes.imshow(sheet, interpolation="nearest")
    axes.axis("off")
    for position, title in enumerate(columns):
        axes.text((position + 0.5) * sheet.shape[1] / len(columns), -6, title, ha="center", va="bottom", fontsize=8)
    for position, label in enumerate(labels):
        axes.text(-6, (position + 0.5) * sheet.shape[0] / len(labels), label, ha="right", va="center", fontsize=8)
    return figure


def panel_image(columns: Mapping[str, Tensor], labels: Sequence[str]) -> NDArray[np.uint8]:
    """`panel_figure` as (H, W, 3) pixels, for loggers."""
    return np.array(Image.open(io.BytesIO(png_bytes(panel_figure(columns, labels)))).convert("RGB"))


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _column(images: Tensor) -> NDArray[np.uint8]:
    """(B (H + gap), W + gap, 3): the images below each other on white."""
    images = images.detach().cpu().float()
    unit = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else (images + 1) / 2
    pixels = (unit.clamp(0, 1) * 255).round()
    padded = torch.nn.functional.pad(pixels, (_GAP // 2,) * 4, value=255.0)
    return padded.permute(0, 2, 3, 1).flatten(0, 1).byte().numpy()


def _read(path: str | Path) -> list[dict[str, str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no logged values at {path}: give the metrics.csv that a run writes")
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _series(rows: Iterable[Mapping[str, float | str | None]]) -> dict[str, list[tuple[float, float]]]:
    """(step, value) by key `stage/name`."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if "/" in key and value not in (None, ""):
                series.setdefault(key, []).append((float(row["step"] or 0), float(value or 0)))
    return series


def _draw_series(axes: Axes, name: str, series: Mapping[str, list[tuple[float, float]]]) -> None:
    for position, (key, points) in enumerate(series.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else None
        axes.plot(
            steps,
            values,
            label=key.partition("/")[0],
            color=_colour(position),
            linestyle=_STYLES[position],
            marker=marker,
            markersize=3,
        )
    axes.set_title(name.replace("_", " "), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
