"""Arguments and help of every command. Nothing heavy is imported, so that help and wrong arguments answer at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from deocc.messages import ArgumentParser

NEWEST: Final = "newest"  # value of --checkpoint for the newest stage-2 run
AUTO: Final = "auto"  # value of --device for a GPU where there is one
ALL_KINDS, RANDOM_KIND = "all", "random"  # values of `deocc mask --kind` besides the names of kinds
CROP_SIZE: Final = 256  # side in pixels of the crops that `deocc mask --crops` writes
_PHOTOS: Final = "image files, and folders of them with their subfolders"

# Copies of what the registries contain, since these import torch; a test compares them.
KINDS: Final = ("surgical", "cloth", "n95", "scarf", "sunglasses", "hand", "box", "strokes", "blob")
ALIGNMENTS: Final = ("arcface112", "dlib150", "celeba178", "canonical")
DETECTORS: Final = ("dlib", "dlib_cnn", "mtcnn", "yunet")
DEFAULT_DETECTOR: Final = "mtcnn"
EXPORT_SUFFIXES: Final = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}

TRAINING_HELP: Final = {
    "fit": """usage: deocc fit --config FILE [--config FILE ...] [--run FOLDER] [--KEY VALUE ...]
       deocc fit --resume RUN [--KEY VALUE ...]

Train the mask predictor, stage 1 or stage 2. Configurations are files, or names of those that come with deocc:
inpaint, distill, lfw/segment, lfw/inpaint, lfw/distill, and overlays such as trainer/gpus or logger/wandb.

  --config FILE        may be given several times; later files and --KEY VALUE win
  --run FOLDER         where to write; a folder with a run is never overwritten
  --resume RUN         continue an interrupted run, with the same result as without the interruption
""",
    "validate": """usage: deocc validate [--checkpoint RUN] [--config FILE ...] [--KEY VALUE ...]

Evaluate a run on the validation people.

  --checkpoint RUN     a run or a checkpoint file (default: the newest run)
""",
    "test": """usage: deocc test [--checkpoint RUN] [--config FILE ...] [--run FOLDER] [--KEY VALUE ...]

Evaluate a run on the test people; writes results.json, report.html and, for stage 2, thresholds and the model folder.

  --checkpoint RUN     a run or a checkpoint file (default: the newest run)
  --run FOLDER         where to write (default: the run's folder, or a folder in it for a test on other faces)
  --config FILE        other settings, such as another face set
""",
    "ablate": """usage: deocc ablate --config PLAN [--run FOLDER] [--jobs N] [--seeds N ...] [--KEY VALUE ...]

Train, test and compare the variants of a plan; the same command continues after an interruption.

  --config PLAN        a YAML file with the keys below, or its name, such as ablation/paper
  --run FOLDER         where to write (default: runs/ablation)
  --jobs N             number of simultaneous trainings or tests (default: 1)
  --seeds N ...        every variant is trained once for each seed and fold
  --people WHO         whose figures are compared: test or validation
  --share_outputs BOOL compute the outputs of frozen networks once for all runs of a fold; takes disk space
  --stage1, --stage2, --test, --folds, --variants, --own_stage1, --rows, --compare   the plan, see configs/ablation
  --wandb              log every run to Weights & Biases
""",
}
"""Help of the commands whose arguments are the classes of a configuration."""

KEYS_HELP: Final = """
Keys:
  --model.init_args.NAME VALUE     of the module, such as learning_rate
  --data.NAME VALUE                of the data module, such as batch_size, face_set, kinds
  --trainer.NAME VALUE             of Lightning's Trainer, such as max_epochs, devices, precision
  --print_config                   print all keys and their values, with those of the given --config
  --model.help CLASS, --data.help  explain the keys of a class, such as deocc.modules.DistillationModule
"""


def _photo_parser(command: str, description: str) -> ArgumentParser:
    """Return a parser with the options that all commands for photos have."""
    parser = ArgumentParser(prog=f"deocc {command}", description=description)
    add = parser.add_argument
    add("--json", action="store_true", help="print the result, or the error, as JSON")
    add("--all", action="store_true", dest="every", help="all faces of a photo, not only the most prominent")
    number = "of photos with several faces take this one, from 1, most prominent first"
    add("--face", type=int, dest="number", metavar="N", help=number)
    aligned = "the photos are crops aligned in this way, one face each, and no detector is used"
    add("--aligned", choices=ALIGNMENTS, help=aligned)
    _add_detector(parser)
    return parser


def _add_detector(parser: ArgumentParser) -> None:
    parser.add_argument("--detector", choices=DETECTORS, help=f"default: {DEFAULT_DETECTOR}")
    parser.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")


def _add_model(parser: ArgumentParser, choose_device: bool = True) -> None:
    """Add --checkpoint and --device, without a choice always the processor, for `deocc.commands.model.load_model`."""
    model = (
        f"a run, a checkpoint, a model folder, owner/name on the Hugging Face hub, or {NEWEST!r} for the newest "
        "stage-2 run below runs/ (default: the packaged model, else the newest run)"
    )
    parser.add_argument("--checkpoint", metavar="MODEL", help=model)
    if choose_device:
        where = "cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one"
        parser.add_argument("--device", default=AUTO, help=where)
    else:
        parser.set_defaults(device="cpu")


def _mask() -> ArgumentParser:
    description = "Put masks on the faces of photos: masked copies, binary masks, and a list of what was done."
    parser = _photo_parser("mask", description)
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTOS", help=_PHOTOS)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    kinds = f"{', '.join(KINDS)}; {ALL_KINDS} = a copy with each; {RANDOM_KIND} = one at random for each face"
    kinds = f"default: surgical. {kinds}; may be given several times"
    add("--kind", action="append", metavar="KIND", help=kinds)
    add("--seed", type=int, default=0, help="another seed gives other masks (default: 0)")
    crops = f"write aligned crops of the masked faces too, {CROP_SIZE} pixels a side"
    add("--crops", action="store_true", help=crops)
    return parser


def _predict() -> ArgumentParser:
    description = (
        "Predict masks, complete the faces behind them and embed the faces of photos. Without PHOTOS, the validation "
        "faces of a run are predicted: `deocc predict --checkpoint RUN`; `--print_config` lists the keys of that form."
    )
    parser = _photo_parser("predict PHOTOS", description)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help=_PHOTOS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--parquet", action="store_true", help="write embeddings.parquet beside embeddings.npz")
    _add_model(parser)
    return parser


def _verify() -> ArgumentParser:
    parser = _photo_parser("verify", "Say whether two photos show the same person: same, different, or not sure.")
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="a photo")
    rate = (
        "share of pairs of two people that may be called the same; one of those calibrated "
        "(default: 0.01, or the strictest above it)"
    )
    parser.add_argument("--false-accept-rate", type=float, metavar="RATE", help=rate)
    _add_model(parser)
    return parser


def _identify() -> ArgumentParser:
    description = "Find people of a gallery in photos: the most similar ones, and who is unknown."
    parser = _photo_parser("identify", description)
    add = parser.add_argument
    layout = "folder of the known people's photos: GALLERY/PERSON/PHOTO, or GALLERY/PERSON.jpg"
    add("gallery", type=Path, metavar="GALLERY", help=layout)
    add("photos", nargs="+", type=Path, metavar="PHOTOS", help=_PHOTOS)
    add("--top", type=int, default=5, metavar="N", help="how many people to list for each face (default: 5)")
    rate = "share of unknown faces that may be taken for anyone of the gallery (default: 0.01)"
    add("--false-accept-rate", type=float, default=0.01, metavar="RATE", help=rate)
    index = (
        "a string for faiss.index_factory; Flat compares with every face, others such as HNSW32 are faster and "
        "approximate (default: Flat)"
    )
    add("--index", default="Flat", metavar="DESCRIPTION", help=index)
    kept = "keep the gallery's embeddings in this file, and use those in it"
    add("--save-index", type=Path, metavar="FILE", help=kept)
    table = "the table (default: identified.csv)"
    add("--out", type=Path, default=Path("identified.csv"), metavar="FILE", help=table)
    _add_model(parser)
    return parser


def _export() -> ArgumentParser:
    what = "from canonical crops to completed faces, masks and embeddings"
    parser = ArgumentParser("deocc export", description=f"Write the trained system into one file: {what}.")
    parser.add_argument("--to", required=True, choices=list(EXPORT_SUFFIXES), help="the format")
    suffixes = ", ".join(f"{suffix} for {name}" for name, suffix in EXPORT_SUFFIXES.items())
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=f"where to write it: {suffixes}")
    smaller = parser.add_mutually_exclusive_group()
    cost = "; tells what that costs in accuracy"
    smaller.add_argument("--int8", action="store_true", help=f"quantise an onnx file to 8 bits{cost}")
    smaller.add_argument("--fp16", action="store_true", help=f"half precision inside an onnx file{cost}")
    photos = "compare with torch on the faces of these photos (default: embedded faces of validation people)"
    parser.add_argument("--photos", nargs="+", type=Path, default=[], metavar="PHOTOS", help=photos)
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    _add_model(parser, choose_device=False)
    return parser


def _demo() -> ArgumentParser:
    description = "Show on a local web page how a photo is masked, completed, compared and identified."
    parser = ArgumentParser("deocc demo", description=description)
    _add_model(parser)
    host, port = "127.0.0.1", 7860
    parser.add_argument("--host", default=host, help=f"address to listen at; {host} admits this machine only")
    proxy = "host name under which a reverse proxy serves the page; may be repeated"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=proxy)
    parser.add_argument("--port", type=int, default=port, help=f"default: {port}; 0 = any free one")
    _add_detector(parser)
    return parser


def _doctor() -> ArgumentParser:
    description = "Report what is installed and works, what is wrong, and how to fix it."
    parser = ArgumentParser("deocc doctor", description=description)
    checkpoint = "a run folder, a checkpoint file or a model folder (default: the newest run)"
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help=checkpoint)
    data = "a folder of faces: CelebA, or aligned crops as PERSON/IMAGE, also compared with the checkpoint"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    return parser


PARSERS: Final[dict[str, Callable[[], ArgumentParser]]] = {
    "mask": _mask,
    "predict": _predict,
    "verify": _verify,
    "identify": _identify,
    "export": _export,
    "demo": _demo,
    "doctor": _doctor,
}
"""Parsers by command; the others have `TRAINING_HELP`."""
