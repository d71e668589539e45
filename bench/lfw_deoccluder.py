"""Keep the de-occluder of a half: `python -m bench.lfw_deoccluder runs/lfw/b bench/lfw_half_b.ckpt`.

`configs/lfw/ablation.yaml` uses the file as `inpainting_checkpoint`, so that the ablation trains students only. The
file holds the averaged generator and the mask predictor of the runs `inpaint` and `segment` in float16, without what
only a training needs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from deocc import runs
from deocc.files import replace_file
from deocc.networks.deoccluder import Deoccluder


def pack(half: Path, file: Path) -> None:
    """Write the de-occluder of a half's runs as a stage-1 checkpoint.

    Raises:
        FileNotFoundError: a run has no checkpoint.
    """
    paths = [runs.find_checkpoint(half / name) for name in ("inpaint", "segment")]
    deoccluder = Deoccluder.from_checkpoint(*paths)
    state = {}
    for name, value in deoccluder.state_dict().items():
        kept = value.half() if value.ndim > 0 else value  # the segmenter's gate stays as it is
        state[name.replace("generator.", "average.module.", 1)] = kept
    generator, segmenter = deoccluder.config["generator"], deoccluder.config["segmenter"]
    settings = {"width": generator["width"], "attention": generator["attention"], "segmenter_width": segmenter["width"]}
    content = {"stage": "inpainting", "face_size": deoccluder.size, "hyper_parameters": settings, "state_dict": state}
    with replace_file(file) as draft:
        torch.save(content, draft)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lfw_deoccluder", description="Keep a half's de-occluder.")
    parser.add_argument("half", type=Path, help="the folder of a half, with the runs inpaint and segment")
    parser.add_argument("file", type=Path, help="the checkpoint to write")
    chosen = parser.parse_args(argv)
    try:
        pack(chosen.half, chosen.file)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
