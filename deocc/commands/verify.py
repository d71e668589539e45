"""`deocc verify A B`: decide whether two photos show the same person."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from deocc.commands.arguments import PARSERS
from deocc.commands.model import finder_of, load_model
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Decision, Verdict
from deocc.messages import printable, telling_warnings

_CODES: Final[dict[Decision, int]] = {"same": 0, "different": 1, "not sure": 3}
"""Exit codes; 2 is bad input."""


def main(argv: Sequence[str]) -> int:
    """Run `deocc verify A B`; `deocc verify --help` lists the arguments.

    With --all every face of A is compared with every face of B; the false-accept rate holds for each comparison. With
    --json one object is printed, with --all a list of them: the fields of `deocc.inference.pipeline.Verdict`, `photo_a`
    and `photo_b`, `face_a` and `face_b` (numbers of the faces, from 1, most prominent first), and `found_a` and
    `found_b` (how they were found).

    Returns:
        0 for "same", 1 for "different", 3 for "not sure"; with --all the lowest of these over the comparisons that is
        not 1, else 1. Errors have code 2.
    """
    chosen = PARSERS["verify"]().parse_args(argv)
    pipeline = load_model(chosen)
    finder = pipeline.finder = finder_of(chosen, pipeline.size)
    faces_a, faces_b = (_find(finder, path) for path in (chosen.a, chosen.b))
    verdicts = pipeline.verify_pairs([a.face for a in faces_a], [b.face for b in faces_b], chosen.false_accept_rate)
    answers, texts, codes = [], [], []
    for a, row in zip(faces_a, verdicts, strict=True):
        for b, verdict in zip(faces_b, row, strict=True):
            places = {"photo_a": str(chosen.a), "photo_b": str(chosen.b), "face_a": a.number, "face_b": b.number}
            answers.append({**places, **asdict(verdict), "found_a": a.details, "found_b": b.details})
            texts.append(_describe(verdict, _name(chosen.a, a), _name(chosen.b, b)))
            codes.append(_CODES[verdict.decision])
    if chosen.json:
        print(json.dumps(answers if chosen.every else answers[0], indent=2))
    else:
        print("\n\n".join(texts))
    return min((code for code in codes if code != _CODES["different"]), default=_CODES["different"])


def _find(finder: FaceFinder, path: Path) -> list[PhotoFace]:
    """Find the only face of a photo, or with --all every face."""
    with telling_warnings():
        photo = read_photo(path)
        return finder.find(photo, str(path)) if finder.every else [finder.find_single(photo, str(path))]


def _name(path: Path, face: PhotoFace) -> str:
    return printable(str(path)) + (f", face {face.number} of {face.count}" if face.count > 1 else "")


def _describe(verdict: Verdict, name_a: str, name_b: str) -> str:
    rate = f"for a false-accept rate of {verdict.false_accept_rate:g} ({verdict.condition})"
    if verdict.tested_false_accept_rate is not None:
        rate += f", of test people's pairs it accepted {verdict.tested_false_accept_rate:.2g}"
    state_a, state_b = ("masked" if masked else "not masked" for masked in (verdict.masked_a, verdict.masked_b))
    return (
        f"{verdict.decision}: {verdict.reason}\n"
        f"  similarity  {verdict.similarity:.3f}; same from {verdict.same_from:.3f}, "
        f"different below {verdict.different_below:.3f}\n"
        f"  calibrated  {rate}\n"
        f"  A           {state_a}, {verdict.visible_a:.0%} visible: {name_a}\n"
        f"  B           {state_b}, {verdict.visible_b:.0%} visible: {name_b}"
    )
