"""The command: two photos in, a verdict out, in words or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from deocc.commands.arguments import PhotoParser, add_model_argument, finder_of, load_model
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Verdict
from deocc.messages import printable, telling_warnings


class _Compared(NamedTuple):
    """A verdict, and the numbers of the faces in their photos, from 1, the largest first."""

    face_a: int
    face_b: int
    verdict: Verdict


def main(words: Sequence[str]) -> int:
    """Run `deocc verify A B` with these words; `deocc verify --help` lists them.

    Prints "same", "different" or "not sure", why, the similarity and both limits, the false-accept rate that they were calibrated for, and
    of each face whether it is masked and how much of it is in view. Where too little is, the answer is "not sure". With --all every face of
    A is compared with every one of B; each comparison has that rate for itself.

    With --json one object is printed, with --all a list of them: `face_a` and `face_b`, and what `deocc.inference.pipeline.Verdict` lists.

    Returns:
        0: there is an answer, be it "not sure". Scripts read the answer from --json.

    Raises:
        ValueError: wrong words, a photo that cannot be read or shows no face, or a model without thresholds.
        FileNotFoundError: no such photo, model or weights file.
        ImportError: a package that is needed is not installed.
    """
    parser = _parser()
    chosen = parser.parse_args(words)
    pipeline = load_model(chosen)
    finder = finder_of(chosen, pipeline.size)
    faces_a, faces_b = (_faces(path, finder) for path in (chosen.a, chosen.b))
    compared = [
        _Compared(a, b, pipeline.verify_faces(one.face, other.face, chosen.false_accept_rate))
        for a, one in enumerate(faces_a, 1)
        for b, other in enumerate(faces_b, 1)
    ]
    print(
        _json(compared, chosen.every)
        if chosen.json
        else "\n\n".join(_text(each, chosen.a, chosen.b, chosen.every) for each in compared)
    )
    return 0


def _parser() -> PhotoParser:
    parser = PhotoParser(
        "verify", "Say whether two photos show the same person: same, different, or not sure.", photos=False
    )
    parser.add_argument("a", type=Path, metavar="A", help="a photo")
    parser.add_argument("b", type=Path, metavar="B", help="a photo")
    rate = "share of pairs of two people that may be called the same; one of those calibrated (default: 0.01, or the strictest above it)"
    parser.add_argument("--false-accept-rate", type=float, metavar="RATE", help=rate)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    add_model_argument(parser)
    return parser


def _faces(path: Path, finder: FaceFinder) -> list[PhotoFace]:
    with telling_warnings():
        return finder.find(read_photo(path), str(path))


def _json(compared: Sequence[_Compared], every: bool) -> str:
    objects = [{"face_a": face_a, "face_b": face_b, **asdict(verdict)} for face_a, face_b, verdict in compared]
    return json.dumps(objects if every else objects[0], indent=2)


def _text(compared: _Compared, a: Path, b: Path, numbered: bool) -> str:
    verdict = compared.verdict
    tested = verdict.tested_false_accept_rate
    tried = "" if tested is None else f", of test people's pairs it accepted {tested:.2g}"
    places = ((a, compared.face_a), (b, compared.face_b))
    names = [printable(str(path)) + (f", face {face}" if numbered else "") for path, face in places]
    return "\n".join(
        [
            f"{verdict.decision}: {verdict.reason}",
            f"  similarity  {verdict.similarity:.3f}; same from {verdict.same_from:.3f}, different below {verdict.different_below:.3f}",
            f"  calibrated  for a false-accept rate of {verdict.false_accept_rate:g} ({verdict.condition}){tried}",
            f"  A           {_state(verdict.masked_a, verdict.visible_a)}: {names[0]}",
            f"  B           {_state(verdict.masked_b, verdict.visible_b)}: {names[1]}",
        ]
    )


def _state(masked: bool, visible: float) -> str:
    return f"{'masked' if masked else 'not masked'}, {visible:.0%} visible"
