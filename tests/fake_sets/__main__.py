"""Draw a small data set in the layout of a real one: `python -m tests.fake_sets celeba FOLDER`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fake_sets.ar import write_ar
from tests.fake_sets.bin_file import write_bin_file
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw
from tests.fake_sets.pair_list import write_pair_list
from tests.fake_sets.record_file import write_record_file

WRITERS: dict[str, Callable[[Path], Any]] = {
    "ar": write_ar,
    "bin": lambda folder: write_bin_file(folder / "pairs.bin"),
    "celeba": write_celeba,
    "lfw": write_lfw,
    "pairs": write_pair_list,
    "record": write_record_file,
}


def main() -> None:
    """Write the set that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_sets", description="Draw a small data set in the layout of a real one."
    )
    parser.add_argument("name", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    WRITERS[words.name](words.folder)
    print(f"{words.name}: {sum(path.is_file() for path in words.folder.rglob('*'))} files in {words.folder}")


if __name__ == "__main__":
    main()
