"""`deocc verify A B`: decide whether two photos show the same person."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from deocc.commands.arguments import PARSERS
from deocc.commands.model import finder_of, load_model
from deocc.inference.faces import PhotoFace
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Decision, Verdict
from deocc.messages import printable, telling_warnings

_CODES: Final[dict[Decision, int]] = {"same": 0, "different": 1, "not sure": 3}  # exit codes; 2 is bad input


def main(argv: Sequence[str]) -> int:
    """Run `deocc verify A B`: print the verdict, with --all one for each pair of faces.

    With --json an object is printed, with --all a list of them: the fields of `deocc.inference.pipeline.Verdict`, the
    paths `photo_a` and `photo_b`, the numbers of the faces `face_a` and `face_b`, from 1, most prominent first, and
    `found_a` and `found_b`, how they were found. The false-accept rate holds for each comparison.

    Returns:
        0 for "same", 1 for "different", 3 for "not sure"; with --all the lowest of these over the comparisons that is
        not 1, else 1. Errors have code 2.
    """
    chosen = PARSERS["verify"]().parse_args(argv)
    pipeline = load_model(chosen)
    finder = pipeline.finder = finder_of(chosen, pipeline.size)
    found = []
    for path in (chosen.a, chosen.b):
        with telling_warnings():
            photo, name = read_photo(path), str(path)
            found.append(finder.find(photo, name) if chosen.every else [finder.find_single(photo, name)])
    faces_a, faces_b = found
    verdicts = pipeline.verify_pairs([a.face for a in faces_a], [b.face for b in faces_b], chosen.false_accept_rate)
    answers, texts, codes = [], [], []
    for a, row in zip(faces_a, verdicts, strict=True):
        for b, verdict in zip(faces_b, row, strict=True):
            places = {"photo_a": str(chosen.a), "photo_b": str(chosen.b), "face_a": a.number, "face_b": b.number}
            answers.append({**places, **asdict(verdict), "found_a": a.details, "found_b": b.details})
            texts.append(_describe(verdict, chosen.a, a, chosen.b, b))
            codes.append(_CODES[verdict.decision])
    if chosen.json:
        print(json.dumps(answers if chosen.every else answers[0], indent=2))
    else:
        print("\n\n".join(texts))
    return min((code for code in codes if code != _CODES["different"]), default=_CODES["different"])


def _describe(verdict: Verdict, path_a: Path, face_a: PhotoFace, path_b: Path, face_b: PhotoFace) -> str:
    calibrated = f"for a false-accept rate of {verdict.false_accept_rate:g} ({verdict.condition})"
    if verdict.tested_false_accept_rate is not None:
        calibrated += f", of test people's pairs it accepted {verdict.tested_false_accept_rate:.2g}"
    text = (
        f"{verdict.decision}: {verdict.reason}\n"
        f"  similarity  {verdict.similarity:.3f}; same from {verdict.same_from:.3f}, "
        f"different below {verdict.different_below:.3f}\n"
        f"  calibrated  {calibrated}"
    )
    for letter, path, face, masked, visible in (
        ("A", path_a, face_a, verdict.masked_a, verdict.visible_a),
        ("B", path_b, face_b, verdict.masked_b, verdict.visible_b),
    ):
        state = "masked" if masked else "not masked"
        number = f", face {face.number} of {face.count}" if face.count > 1 else ""
        text += f"\n  {letter}           {state}, {visible:.0%} visible: {printable(str(path))}{number}"
    return text
