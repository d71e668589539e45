"""Keep the de-occluder of a half: `python -m bench.lfw_deoccluder runs/lfw/b bench/lfw_half_b.ckpt`.

`configs/lfw/ablation.yaml` uses such files as `inpainting_checkpoint`, so that the ablation trains students only. They
hold the averaged generator and the mask predictor of the runs `inpaint` and `segment`, kernels in float16, without what
only a training needs. The source may also be a model folder, such as `deocc/pretrained`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from deocc import runs
from deocc.files import replace_file
from deocc.inference.model_folder import WEIGHTS
from deocc.networks.deoccluder import Deoccluder


def pack(source: Path, file: Path) -> None:
    """Write the de-occluder of a half's runs, or of a model folder, as a stage-1 checkpoint.

    Raises:
        FileNotFoundError: a run has no checkpoint.
    """
    is_model = (source / WEIGHTS).is_file()
    paths = [source] if is_model else [runs.find_checkpoint(source / name) for name in ("inpaint", "segment")]
    deoccluder = Deoccluder.from_checkpoint(*paths)
    state = {}
    for name, value in deoccluder.state_dict().items():
        kept = value.half() if value.ndim > 1 else value
        state[name.replace("generator.", "average.module.", 1)] = kept
    generator, segmenter = deoccluder.config["generator"], deoccluder.config["segmenter"]
    settings = {"width": generator["width"], "attention": generator["attention"], "segmenter_width": segmenter["width"]}
    content = {"stage": "inpainting", "face_size": deoccluder.size, "hyper_parameters": settings, "state_dict": state}
    with replace_file(file) as draft:
        torch.save(content, draft)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lfw_deoccluder", description="Keep a half's de-occluder.")
    parser.add_argument("source", type=Path, help="a model folder, or that of the runs inpaint and segment of a half")
    parser.add_argument("file", type=Path, help="the checkpoint to write")
    chosen = parser.parse_args(argv)
    try:
        pack(chosen.source, chosen.file)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
