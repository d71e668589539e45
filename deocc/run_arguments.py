"""What `--checkpoint RUN` and `--resume RUN` stand for: that run's configuration, folder and checkpoint, in LightningCLI's words."""

import sys
from pathlib import Path

from deocc import runs

FROM_CHECKPOINT = "from_checkpoint"
"""In place of a run folder: the one that the checkpoint belongs to."""


def resolve(arguments: list[str]) -> list[str]:
    """The arguments of a training command with `--checkpoint` (of an evaluation; default: the newest run) and `--resume` (of fit) replaced.

    Raises:
        FileNotFoundError: no such run, or it has no configuration.
        ValueError: an option without its value, or all checkpoints are damaged.
    """
    command, *words = arguments
    if {"-h", "--help"} & set(words):
        return arguments
    if command == "fit":
        return _resumed(words)
    return arguments if any(word.startswith("--ckpt_path") for word in words) else _evaluated(command, words)


def _evaluated(command: str, words: list[str]) -> list[str]:
    where, words = _take(words, "--checkpoint")
    if where is None:
        where = str(runs.newest_run("deocc.modules."))
        print(f"deocc {command}: no --checkpoint given, taking the newest run, {where}", flush=True)
    checkpoint = runs.find_checkpoint(where)
    folder = runs.run_folder_of(checkpoint)
    if not (folder / runs.CONFIG).is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no {runs.CONFIG} in its run folder {folder}: give a run that `deocc fit` wrote"
        )
    return [
        command,
        "--config",
        str(folder / runs.CONFIG),
        "--run",
        FROM_CHECKPOINT,
        "--ckpt_path",
        str(checkpoint),
        *words,
    ]


def _resumed(words: list[str]) -> list[str]:
    """The run's own configuration first, so that later words change it; its folder and checkpoint last, so that no file changes them."""
    where, rest = _take(words, "--resume")
    if where is None:
        return ["fit", *_in_place(words)]
    run = Path(where)
    if not (run / runs.CONFIG).is_file():
        raise FileNotFoundError(
            f"no run to resume at {run}: it has no {runs.CONFIG}; give the folder that `deocc fit` wrote to"
        )
    return ["fit", "--config", str(run / runs.CONFIG), *rest, "--run", str(run), *to_resume(run)]


def to_resume(run: Path) -> list[str]:
    """The words that let a training go on in `run` from its newest intact checkpoint, or from its beginning where it has none yet."""
    try:
        return ["--ckpt_path", str(runs.find_checkpoint(run, resume=True))]
    except FileNotFoundError:
        print(f"deocc fit: {run} has no checkpoint yet, so it begins anew there", file=sys.stderr, flush=True)
        return ["--resume", str(run)]


def _in_place(words: list[str]) -> list[str]:
    """Let `fit --ckpt_path FILE` without `--run` write on in the run that the file belongs to, not in the one that the YAML names."""
    file = _take(words, "--ckpt_path")[0]
    if file is None or _take(words, "--run")[0] is not None:
        return words
    folder = runs.run_folder_of(Path(file))
    return [*words, "--run", str(folder)] if (folder / runs.CONFIG).is_file() else words


def _take(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `option VALUE` or `option=VALUE`, and the words without it."""
    for number, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1], words[:number] + words[number + 1 :]
        if word == option:
            if number + 1 == len(words):
                raise ValueError(f"{option} needs a value: a run folder or a checkpoint file")
            return words[number + 1], words[:number] + words[number + 2 :]
    return None, words
