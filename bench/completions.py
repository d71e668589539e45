"""Sharpness and truth of completions: `python -m bench.completions --data data/lfw bench/lfw_half_a.ckpt`.

Completes masked faces of validation people of LFW (half a) by the given masks, with the generators of stage-1
checkpoints or model folders. PSNR counts covered pixels. FD is the Frechet distance between the embeddings of clean and
of completed faces, similarity their mean cosine after the mean of the clean faces is subtracted; SFace takes no part in
training. Detail is the size of what a 5-pixel average removes well inside the mask, relative to the clean face;
colour is the error of the mean chroma of cells of 8 x 8 pixels, in steps of 1/255.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.found_faces import KINDS, read_lfw
from deocc.batch import MaskedFaceBatch
from deocc.data import MaskedFaceDataModule
from deocc.evaluation.perceptual import FrechetDistance
from deocc.losses import local_chroma_loss
from deocc.networks import create_embedder
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders.embedder import Embedder, centred

_RIM = 7  # pixels: detail is measured where a square of this side lies inside the mask


def detail(face: Tensor, mask: Tensor) -> Tensor:
    """Return the summed square of what a 5-pixel average removes from faces (B, 3, H, W) inside masks (B, 1, H, W)."""
    inside = 1 - F.max_pool2d(1 - mask, _RIM, stride=1, padding=_RIM // 2)
    return ((face - F.avg_pool2d(face, 5, stride=1, padding=2)).square() * inside).sum()


def measure(deoccluder: Deoccluder, batches: Sequence[MaskedFaceBatch], recognisers: Sequence[Embedder]) -> list[str]:
    """Return PSNR in dB, and Frechet distance and similarity of each recogniser, then detail and colour."""
    face, mask = (torch.cat([batch[key] for batch in batches]) for key in ("face", "mask"))
    completed = torch.cat([deoccluder(batch["masked_face"], batch["mask"]) for batch in batches])
    error = ((completed - face).square() / 4 * mask).sum() / (3 * mask.sum())
    cells = [f"{-10 * error.log10():.2f}"]
    for recogniser in recognisers:
        with torch.no_grad():
            embeddings = [torch.cat([recogniser(batch) for batch in images.split(32)]) for images in (completed, face)]
        distance = FrechetDistance(torch.nn.Identity(), recogniser.embedding_dim)
        distance.update(*embeddings)
        ones, others = (centred(each, embeddings[1].mean(0)) for each in embeddings)
        cells += [f"{distance.compute():.4g}", f"{(ones * others).sum(1).mean():.3f}"]
    cells.append(f"{(detail(completed, mask) / detail(face, mask)).sqrt():.2f}")
    return [*cells, f"{255 / 2 * local_chroma_loss(completed, face, mask):.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How sharp and how true completions are.")
    parser.add_argument("checkpoints", nargs="+", metavar="FILE", help="stage-1 checkpoints or model folders")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--batches", type=int, default=16, metavar="N", help="of 32 faces each (default: 16)")
    chosen = parser.parse_args(argv)
    data = MaskedFaceDataModule(
        read_lfw(chosen.data, parser), eval_batch_size=32, eval_kinds=list(KINDS), mixed_kinds=True, num_workers=0
    )
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()[1]
    batches = [data.on_after_batch_transfer(batch, 1) for batch, _ in zip(loader, range(chosen.batches), strict=False)]
    recognisers = [create_embedder(name) for name in ("dlib_resnet", "sface")]
    table = Table("generator", "PSNR dB", "FD, dlib", "similarity", "FD, SFace", "similarity", "detail", "colour")
    for checkpoint in track(chosen.checkpoints, "completing", console=Console(stderr=True), transient=True):
        table.add_row(checkpoint, *measure(Deoccluder.from_checkpoint(checkpoint), batches, recognisers))
    Console().print(table)


if __name__ == "__main__":
    main()
