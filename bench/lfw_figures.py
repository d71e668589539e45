"""Figures of the page "Results on LFW": ROC, error rates by kind of occluder, and a panel of unseen people.

All have a white background, so that they are legible on a dark page too.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from deocc import runs
from deocc.batch import MaskedFaceBatch
from deocc.data import LfwFaces, MaskedFaceDataModule
from deocc.data.datamodule import mask_batch
from deocc.evaluation.figures import COLOURS, panel_figure, roc_figure, write_svg
from deocc.evaluation.verification import PairScores, roc_curve
from deocc.inference.model_folder import load
from deocc.masking import list_kinds

PANEL_SIZE = 104  # pixels of a face in the panel


def mean_roc(parts: Sequence[PairScores]) -> tuple[Tensor, Tensor]:
    """Return FAR and TAR (T,), both ascending; TAR is the mean over parts at equal FAR, not at equal threshold."""
    curves = [roc_curve(pairs.similarity, pairs.same) for pairs in parts]
    far = torch.cat([curve.far for curve in curves]).unique()
    tar = [curve.tar[torch.searchsorted(curve.far, far, right=True) - 1] for curve in curves]
    return far, torch.stack(tar).mean(0)


def write_roc(path: Path, scores: Mapping[str, Sequence[PairScores]]) -> None:
    """Draw one curve for each title; scores: by title, the pairs of each half."""
    write_svg(roc_figure({title: mean_roc(parts) for title, parts in scores.items()}), path)


def write_kind_bars(path: Path, rates: Mapping[str, Mapping[str, float]], unseen: Sequence[str]) -> None:
    """Draw bars of the equal error rate for each kind of occluder.

    Args:
        path: the SVG file to write.
        rates: by title of a series and by kind, equal error rates in [0, 1].
        unseen: kinds that were never trained on; they are marked.
    """
    kinds = list(next(iter(rates.values())))
    figure = Figure(figsize=(8.4, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(rates)
    for position, (title, by_kind) in enumerate(rates.items()):
        places = [place - 0.4 + (position + 0.5) * width for place in range(len(kinds))]
        bars = axes.bar(places, [100 * by_kind[kind] for kind in kinds], width, label=title, color=COLOURS[position])
        for kind, bar in zip(kinds, bars, strict=True):
            bar.set_hatch("//" if kind in unseen else "")
    axes.set_xticks(range(len(kinds)), _labels(kinds, unseen), fontsize=8)
    axes.set_ylabel("EER %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    write_svg(figure, path)


def write_panel(path: Path, run: Path, data: str | None = None) -> None:
    """Draw one test person for each kind of occluder: clean, masked, predicted mask, completed.

    The people are the first ones of the test, one for each kind; they are not chosen by their looks.

    Args:
        path: the JPEG file to write.
        run: a tested stage-2 run, whose model folder completes the faces.
        data: the folder of LFW; None for the one of the run's configuration.
    """
    settings = yaml.safe_load((run / runs.CONFIG).read_text())["data"]
    face_set = dict(settings["face_set"]["init_args"]) | ({} if data is None else {"root": data})
    pipeline = load(run / "model")
    module = MaskedFaceDataModule(
        LfwFaces(**face_set),
        size=pipeline.size,
        eval_batch_size=32,
        kinds=settings["kinds"],
        eval_kinds=settings["eval_kinds"],
        mixed_kinds=True,
        test_seeds=(1,),
    )
    face, masked_face, kinds = one_person_a_kind(map(mask_batch, module.test_dataloader()[1]), module.eval_kinds)
    output = pipeline.process_faces(masked_face)
    columns = {"clean": face, "masked": masked_face, "predicted mask": output.mask, "completed": output.completed_face}
    small = {
        name: F.interpolate(each.cpu(), PANEL_SIZE, mode="bilinear", antialias=True) for name, each in columns.items()
    }
    panel_figure(small, _labels(kinds, [kind for kind in kinds if kind not in module.kinds])).savefig(
        path, pil_kwargs={"quality": 90}
    )


def one_person_a_kind(batches: Iterable[MaskedFaceBatch], kinds: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """The first image of each kind, each of another person.

    Returns:
        Clean and masked faces (K, 3, H, W), and the K kinds in the order of `kinds`; without those that no image shows.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    people: set[int] = set()
    for batch in batches:
        for position, (kind, person) in enumerate(zip(batch["kind"].tolist(), batch["identity"].tolist(), strict=True)):
            name = list_kinds()[kind]
            if kind >= 0 and name not in found and person not in people:
                found[name] = (batch["face"][position], batch["masked_face"][position])
                people.add(person)
        if len(found) == len(kinds):
            break
    shown = [kind for kind in kinds if kind in found]
    face, masked_face = (torch.stack([found[kind][column] for kind in shown]) for column in (0, 1))
    return face, masked_face, shown


def _labels(kinds: Sequence[str], unseen: Sequence[str]) -> list[str]:
    return [f"{kind}\n(never trained on)" if kind in unseen else kind for kind in kinds]
