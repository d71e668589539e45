"""`deocc export`: write the trained system into one file for other runtimes."""

from collections.abc import Sequence

from deocc.commands.arguments import PARSERS
from deocc.commands.model import load_model
from deocc.files import write_file
from deocc.inference.export import Precision, export
from deocc.inference.export_formats import OPSET, SUFFIXES, require_onnx
from deocc.inference.outputs import check_writable


def main(argv: Sequence[str]) -> int:
    """Run `deocc export`; `deocc export --help` lists the arguments, which are checked before the model is loaded.

    The file maps canonical crops to completed faces, masks, embeddings and covered shares. It is compared with torch on
    real faces before it is written.
    """
    chosen = PARSERS["export"]().parse_args(argv)
    out, to = chosen.out, chosen.to
    precision: Precision = "int8" if chosen.int8 else "fp16" if chosen.fp16 else "fp32"
    if precision != "fp32" and to != "onnx":
        raise ValueError(
            f"--{precision} is for --to onnx alone, files of {to} are float32: leave it out, or take --to onnx"
        )
    if precision != "fp32" and chosen.photos:
        raise ValueError(
            f"--{precision} measures accuracy on people with known identities, the embedded faces: leave --photos out"
        )
    if to == "onnx":
        require_onnx()
    if out.suffix != SUFFIXES[to]:
        raise ValueError(f"--out {out}: with --to {to}, give a name that ends with {SUFFIXES[to]}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a file")
    if out.exists() and not chosen.force:
        raise ValueError(f"--out {out} exists: give --force to replace it, or another name")
    check_writable(out.parent, f"--out {out}")
    exported = export(load_model(chosen), to, precision, chosen.photos)
    try:
        write_file(out, exported.content)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {out} ({reason}): free some space, or choose another folder") from error
    print(f"parity:   on {exported.source}: {exported.parity}{'' if precision == 'fp32' else ' (in float32)'}")
    if exported.accuracy is not None:
        print(f"accuracy: {exported.accuracy}")
    opset = f", opset {OPSET}" if to == "onnx" else ""
    print(f"exported: {out} ({to}{opset}, {precision}, {len(exported.content) / 2**20:.1f} MB)")
    return 0
