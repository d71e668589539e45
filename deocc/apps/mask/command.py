"""The command: find the photos, and mask one after the other."""

from collections.abc import Sequence
from pathlib import Path

from deocc.apps.mask.painting import RANDOM
from deocc.apps.mask.results import CROP_SIZE, TABLE, PhotoMasker, Settings
from deocc.apps.photos import OutcomeFile, PhotoParser, alone_in, check_out, find_photos, finder_of, work_through
from deocc.masking import list_kinds

_ALL = "all"


def main(words: Sequence[str]) -> int:
    """Run `deocc mask` with these words; `deocc mask --help` lists them.

    Below --out are `masked_photos/NAME-KIND.png`, `masks/NAME-KIND.png` (255 = covered), with --crops `crops/NAME-KIND-FACE.png` and its
    mask, and `masks.csv`: a row for each face and kind, or one that says why a photo was left out. NAME is the photo's path within the
    folder that was given, so folders keep their shape. The copies are PNG whatever the photo was, since JPEG would change uncovered pixels
    too. They carry no metadata of the photo. Files that exist stay: those made by the same command from the same photo are not made again,
    so interrupted work goes on, and where others are in the way the photo is left out.

    Returns:
        0 = all done, 1 = something was left out.

    Raises:
        ValueError: words, a kind, detector or alignment that do not exist; --out holds another table, or another command is at work there.
        FileNotFoundError: no such weights file.
        ImportError: a package that the detector needs is not installed.
    """
    chosen = _parser().parse_args(words)
    out: Path = chosen.out
    check_out(out, chosen.photos)
    finding = (chosen.every, chosen.aligned, chosen.detector, chosen.detector_weights)
    settings = Settings(out, _kinds(chosen.kind or ["surgical"]), chosen.seed, chosen.crops, finding)
    finder = finder_of(chosen, CROP_SIZE)
    with alone_in(out):
        table = OutcomeFile(out / TABLE)
        return work_through("mask", find_photos(chosen.photos, outside=out), table, PhotoMasker(settings, finder, table))


def _parser() -> PhotoParser:
    parser = PhotoParser("mask", "Put masks on the faces of photos: masked copies, binary masks, and a list of what was done.")
    kinds = f"{', '.join(list_kinds())}; {_ALL} = a copy with each; {RANDOM} = one at random for each face; may be given several times"
    parser.add_argument("--kind", action="append", metavar="KIND", help=f"default: surgical. {kinds}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other masks (default: 0)")
    parser.add_argument("--crops", action="store_true", help=f"write aligned crops of the masked faces too, {CROP_SIZE} pixels a side")
    return parser


def _kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Every kind once, in the order given."""
    allowed = (*list_kinds(), _ALL, RANDOM)
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown kind of mask {name!r}: choose from {', '.join(allowed)}")
    return tuple(dict.fromkeys(kind for name in names for kind in (list_kinds() if name == _ALL else (name,))))
