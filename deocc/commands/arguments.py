"""Arguments and help of every command. Nothing heavy is imported, so that help and wrong arguments answer at once."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deocc.messages import ArgumentParser

NEWEST: Final = "newest"
"""Value of --checkpoint for the newest stage-2 run."""
AUTO: Final = "auto"
"""Value of --device for a GPU where there is one."""
ALL_KINDS, RANDOM_KIND = "all", "random"
"""Values of `deocc mask --kind` besides the names of kinds."""
CROP_SIZE: Final = 256
"""Side in pixels of the crops that `deocc mask --crops` writes."""
DEFAULT_FALSE_ACCEPT_RATE: Final = 0.01
"""Share of unknown faces that `deocc identify` may accept as anyone of the gallery, unless another one is given."""
DEMO_HOST, DEMO_PORT = "127.0.0.1", 7860

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
  --folds N            folds over people (default: the split of the face set)
  --people WHO         whose figures are compared: test or validation
  --stage1, --stage2, --test, --variants, --own_stage1, --rows, --compare   the plan, see configs/ablation
  --wandb              log every run to Weights & Biases
""",
}
"""Help of the commands whose arguments are the classes of a configuration."""

_KEYS_HELP: Final = """
Keys:
  --model.init_args.NAME VALUE     of the module, such as learning_rate
  --data.NAME VALUE                of the data module, such as batch_size, face_set, kinds
  --trainer.NAME VALUE             of Lightning's Trainer, such as max_epochs, devices, precision
  --print_config                   print all keys and their values, with those of the given --config
  --model.help CLASS, --data.help  explain the keys of a class, such as deocc.modules.DistillationModule
"""


def print_training_help(command: str) -> None:
    """Print the help of fit, validate, test or ablate."""
    print(TRAINING_HELP[command] + ("" if command == "ablate" else _KEYS_HELP), end="")


class PhotoParser(ArgumentParser):
    """A parser with the arguments PHOTOS, --all, --aligned, --detector and --detector-weights.

    Args:
        command: name of the command, such as "mask".
        description: one sentence.
        photos: add the positional argument PHOTOS; false if the command adds its photos itself.
    """

    def __init__(self, command: str, description: str, photos: bool = True) -> None:
        super().__init__(prog=f"deocc {command}", description=description)
        if photos:
            self.add_photos()
            self.add_json()
        self.add_argument(
            "--all", action="store_true", dest="every", help="all faces of a photo, not only the most prominent"
        )
        self.add_argument(
            "--face",
            type=int,
            dest="number",
            metavar="N",
            help="of photos with several faces take this one, from 1, most prominent first",
        )
        aligned = "the photos are crops aligned in this way, one face each, and no detector is used"
        self.add_argument("--aligned", choices=ALIGNMENTS, help=aligned)
        self.add_argument("--detector", choices=DETECTORS, help=f"default: {DEFAULT_DETECTOR}")
        self.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")

    def add_json(self) -> None:
        """Add --json."""
        self.add_argument("--json", action="store_true", help="print the rows of the table, or the error, as JSON")

    def add_photos(self) -> None:
        """Add PHOTOS."""
        accepted = "image files, and folders of them with their subfolders"
        self.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help=accepted)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint and --device, for `load_model`."""
    places = "a run, a checkpoint, a model folder, owner/name on the Hugging Face hub, or"
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help=f"{places} {NEWEST!r} for the newest stage-2 run below runs/ "
        "(default: the packaged model, else the newest run)",
    )
    parser.add_argument("--device", default=AUTO, help="cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one")


def mask_parser() -> PhotoParser:
    """Return the parser of `deocc mask`."""
    description = "Put masks on the faces of photos: masked copies, binary masks, and a list of what was done."
    parser = PhotoParser("mask", description)
    kinds = f"{', '.join(KINDS)}; {ALL_KINDS} = a copy with each; {RANDOM_KIND} = one at random for each face"
    parser.add_argument(
        "--kind", action="append", metavar="KIND", help=f"default: surgical. {kinds}; may be given several times"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other masks (default: 0)")
    parser.add_argument(
        "--crops", action="store_true", help=f"write aligned crops of the masked faces too, {CROP_SIZE} pixels a side"
    )
    return parser


def predict_parser() -> PhotoParser:
    """Return the parser of `deocc predict PHOTOS`."""
    description = (
        "Predict masks, complete the faces behind them and embed the faces of photos. Without PHOTOS, the validation "
        "faces of a run are predicted: `deocc predict --checkpoint RUN`; `--print_config` lists the keys of that form."
    )
    parser = PhotoParser("predict PHOTOS", description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--parquet", action="store_true", help="write embeddings.parquet beside embeddings.npz")
    add_model_argument(parser)
    return parser


def verify_parser() -> PhotoParser:
    """Return the parser of `deocc verify`."""
    description = "Say whether two photos show the same person: same, different, or not sure."
    parser = PhotoParser("verify", description, photos=False)
    parser.add_argument("a", type=Path, metavar="A", help="a photo")
    parser.add_argument("b", type=Path, metavar="B", help="a photo")
    parser.add_argument(
        "--false-accept-rate",
        type=float,
        metavar="RATE",
        help="share of pairs of two people that may be called the same; one of those calibrated "
        "(default: 0.01, or the strictest above it)",
    )
    parser.add_argument("--json", action="store_true", help="print the verdict, or the error, as JSON")
    add_model_argument(parser)
    return parser


def identify_parser() -> PhotoParser:
    """Return the parser of `deocc identify`."""
    description = "Find people of a gallery in photos: the most similar ones, and who is unknown."
    parser = PhotoParser("identify", description, photos=False)
    layout = "folder of the known people's photos: GALLERY/PERSON/PHOTO, or GALLERY/PERSON.jpg"
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help=layout)
    parser.add_photos()
    parser.add_json()
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="how many people to list for each face (default: 5)"
    )
    parser.add_argument(
        "--false-accept-rate",
        type=float,
        default=DEFAULT_FALSE_ACCEPT_RATE,
        metavar="RATE",
        help="share of unknown faces that may be taken for anyone of the gallery "
        f"(default: {DEFAULT_FALSE_ACCEPT_RATE:g})",
    )
    parser.add_argument(
        "--index",
        default="Flat",
        metavar="DESCRIPTION",
        help="a string for faiss.index_factory; Flat compares with every face, others such as HNSW32 are faster and "
        "approximate (default: Flat)",
    )
    parser.add_argument(
        "--save-index",
        type=Path,
        metavar="FILE",
        help="keep the gallery's embeddings in this file, and use those in it",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("identified.csv"), metavar="FILE", help="the table (default: identified.csv)"
    )
    add_model_argument(parser)
    return parser


def export_parser() -> ArgumentParser:
    """Return the parser of `deocc export`."""
    parser = ArgumentParser(
        prog="deocc export",
        description="Write the trained system into one file: "
        "from canonical crops to completed faces, masks and embeddings.",
    )
    parser.add_argument("--to", required=True, choices=list(EXPORT_SUFFIXES), help="the format")
    suffixes = ", ".join(f"{suffix} for {name}" for name, suffix in EXPORT_SUFFIXES.items())
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=f"where to write it: {suffixes}")
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument(
        "--int8", action="store_true", help="quantise an onnx file to 8 bits; tells what that costs in accuracy"
    )
    smaller.add_argument(
        "--fp16", action="store_true", help="half precision inside an onnx file; tells what that costs in accuracy"
    )
    photos = "compare with torch on the faces of these photos (default: embedded faces of validation people)"
    parser.add_argument("--photos", nargs="+", type=Path, default=[], metavar="PHOTOS", help=photos)
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    add_model_argument(parser)
    return parser


def demo_parser() -> ArgumentParser:
    """Return the parser of `deocc demo`."""
    description = "Show on a local web page how a photo is masked, completed, compared and identified."
    parser = ArgumentParser("deocc demo", description=description)
    add_model_argument(parser)
    parser.add_argument("--host", default=DEMO_HOST, help=f"address to listen at; {DEMO_HOST} admits this machine only")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which a reverse proxy serves the page; may be repeated",
    )
    parser.add_argument("--port", type=int, default=DEMO_PORT, help=f"default: {DEMO_PORT}; 0 = any free one")
    parser.add_argument("--detector", choices=DETECTORS, help=f"default: {DEFAULT_DETECTOR}")
    parser.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")
    return parser


def doctor_parser() -> ArgumentParser:
    """Return the parser of `deocc doctor`."""
    parser = ArgumentParser(
        "deocc doctor", description="Report what is installed and works, what is wrong, and how to fix it."
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="RUN",
        help="a run folder, a checkpoint file or a model folder (default: the newest run)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a folder of faces: CelebA, or aligned crops as PERSON/IMAGE, also compared with the checkpoint",
    )
    return parser


PARSERS: Final[dict[str, Callable[[], ArgumentParser]]] = {
    "mask": mask_parser,
    "predict": predict_parser,
    "verify": verify_parser,
    "identify": identify_parser,
    "export": export_parser,
    "demo": demo_parser,
    "doctor": doctor_parser,
}
"""Parsers by command; the others have `TRAINING_HELP`."""
