"""`deocc verify A B`: decide whether two photos show the same person."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from deocc.commands.arguments import PhotoParser, add_model_argument, finder_of, load_model
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Verdict
from deocc.messages import printable, telling_warnings


def main(argv: Sequence[str]) -> int:
    """Run `deocc verify A B`; `deocc verify --help` lists the arguments.

    Prints "same", "different" or "not sure" and the reason, the similarity and both limits, the false-accept rate they
    were calibrated for, and whether each face is masked and how much of it is visible. With --all every face of A is
    compared with every face of B; the rate holds for each comparison. With --json one object is printed, with --all a
    list of them: `face_a`, `face_b` (numbers of the faces, from 1, the largest first) and the fields of
    `deocc.inference.pipeline.Verdict`.

    Returns:
        0 if there is an answer, including "not sure"; scripts read the answer from --json.

    Raises:
        ValueError: wrong arguments, a photo that cannot be read or shows no face, or a model without thresholds.
        FileNotFoundError: no such photo, model or weights file.
        ImportError: a required package is not installed.
    """
    chosen = _parser().parse_args(argv)
    pipeline = load_model(chosen)
    finder = finder_of(chosen, pipeline.size)
    with telling_warnings():
        faces_a = finder.find(read_photo(chosen.a), str(chosen.a))
    with telling_warnings():
        faces_b = finder.find(read_photo(chosen.b), str(chosen.b))

    answers, texts = [], []
    for number_a, a in enumerate(faces_a, 1):
        for number_b, b in enumerate(faces_b, 1):
            verdict = pipeline.verify_faces(a.face, b.face, chosen.false_accept_rate)
            answers.append({"face_a": number_a, "face_b": number_b, **asdict(verdict)})
            names = [printable(str(chosen.a)), printable(str(chosen.b))]
            if chosen.every:
                names = [f"{names[0]}, face {number_a}", f"{names[1]}, face {number_b}"]
            texts.append(_describe(verdict, *names))
    if chosen.json:
        print(json.dumps(answers if chosen.every else answers[0], indent=2))
    else:
        print("\n\n".join(texts))
    return 0


def _parser() -> PhotoParser:
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
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    add_model_argument(parser)
    return parser


def _describe(verdict: Verdict, name_a: str, name_b: str) -> str:
    """Return the verdict as text."""
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
