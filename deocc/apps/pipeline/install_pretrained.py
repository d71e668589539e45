"""Install the model folder of a tested run as the pretrained model of the package.

python -m deocc.apps.pipeline.install_pretrained RUN
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deocc.apps.pipeline.folder import CARD, CONFIG, FOLDER, PRETRAINED, WEIGHTS, write_files
from deocc.apps.pipeline.loading import load

MOST_BYTES: Final = 16_000_000
"""Size that the pretrained model may have, since it is part of every wheel and of the repository."""

_FILES: Final = (WEIGHTS, CARD, CONFIG)


def install_pretrained(run: Path, target: Path = PRETRAINED) -> dict[str, int]:
    """Copy the model folder of a tested run, and return the size of each file in bytes.

    Args:
        run: a run folder with `model/`, or a model folder.
        target: where to.

    Raises:
        FileNotFoundError: there is no model folder, or a file of it is missing.
        ValueError: it is damaged, has no thresholds for one of the conditions, or is larger than `MOST_BYTES`.
        OSError: the target cannot be written to.
    """
    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"no {missing[0]} in {folder}: write the model folder with `deocc test --checkpoint {run}`")
    calibration = load(folder).thresholds
    lacking = [name for name, row in calibration.thresholds.items() if not row] if calibration else ["any condition"]
    if lacking:
        raise ValueError(f"{folder} has no thresholds for {', '.join(lacking)}: test the run on more validation people")
    contents = {name: (folder / name).read_bytes() for name in _FILES}
    size = sum(map(len, contents.values()))
    if size > MOST_BYTES:
        raise ValueError(f"{folder} has {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB are allowed: train smaller networks")
    write_files(target, contents)
    return {name: len(content) for name, content in contents.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deocc.apps.pipeline.install_pretrained", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a stage-2 run that was tested on its own data")
    parser.add_argument("--target", type=Path, default=PRETRAINED, help="folder to install it in (default: that of this package)")
    chosen = parser.parse_args(argv)
    sizes = install_pretrained(chosen.run, chosen.target)
    listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    print(f"pretrained model: {chosen.target} ({listed}; {sum(sizes.values()) / 1e6:.1f} MB of {MOST_BYTES / 1e6:.0f})")


if __name__ == "__main__":
    main()
