"""The command: the words, and the file that is written whole or not at all."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deocc.commands.arguments import add_model_argument, load_model
from deocc.inference.export import Precision, export
from deocc.inference.graphs import FORMATS, OPSET, require_onnx


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def main(words: Sequence[str]) -> int:
    """Run `deocc export` with these words; `deocc export --help` lists them.

    The file takes canonical crops and gives the completed faces, the masks, the embeddings and the covered shares; it is compared with
    torch on real faces before it is written.

    Returns:
        0.

    Raises:
        ValueError: words that do not exist or contradict each other, a file in the way, no stage-2 model, or a file unlike torch.
        FileNotFoundError: no model or no faces to compare on.
        ImportError: a package is not installed.
        OSError: the file cannot be written.
    """
    chosen = _parser().parse_args(words)
    precision: Precision = "int8" if chosen.int8 else "fp16" if chosen.fp16 else "fp32"
    out: Path = chosen.out
    _check_words(chosen.to, precision, chosen.photos)
    _claim(out, chosen.to, chosen.force)
    pipeline = load_model(chosen).to("cpu")
    exported = export(pipeline, chosen.to, precision, chosen.photos)
    _write(out, exported.content)
    described = f"{chosen.to}{f', opset {OPSET}' if chosen.to == 'onnx' else ''}, {precision}, {len(exported.content) / 2**20:.1f} MB"
    print(f"parity:   on {exported.source}: {exported.parity}{'' if precision == 'fp32' else ' (in float32)'}")
    if exported.accuracy is not None:
        print(f"accuracy: {exported.accuracy}")
    print(f"exported: {out} ({described})")
    return 0


def _parser() -> _Parser:
    what = "Write the trained system into one file: from canonical crops to completed faces, masks and embeddings."
    parser = _Parser(prog="deocc export", description=what, allow_abbrev=False)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format")
    suffixes = ", ".join(f"{form.suffix} for {name}" for name, form in FORMATS.items())
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


def _check_words(to: str, precision: Precision, photos: Sequence[Path]) -> None:
    """Refuse at once what would fail only after the model is loaded."""
    if precision != "fp32" and to != "onnx":
        raise ValueError(
            f"--{precision} is for --to onnx alone, files of {to} are float32: leave it out, or take --to onnx"
        )
    if precision != "fp32" and photos:
        raise ValueError(
            f"--{precision} measures accuracy on people whom it knows, the embedded faces: leave --photos out"
        )
    if to == "onnx":
        require_onnx()


def _claim(out: Path, to: str, force: bool) -> None:
    """See that `out` may be written."""
    if out.suffix != FORMATS[to].suffix:
        raise ValueError(f"--out {out}: the name of a {to} file ends with {FORMATS[to].suffix}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a file")
    if out.exists() and not force:
        raise ValueError(f"--out {out} exists: give --force to replace it, or another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(out.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"--out {out}: nothing can be written into {out.parent.absolute()}: choose another folder")


def _write(out: Path, content: bytes) -> None:
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(out)
    except OSError as error:
        raise OSError(
            f"cannot write {out} ({error.strerror or error}): free some space, or choose another folder"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
