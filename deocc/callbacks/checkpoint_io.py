"""Checkpoint files that are there whole or not at all, and that are never trusted."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from deocc.networks.weights import read_checkpoint


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a kill leaves the earlier file; reads tensors and plain values only.

    A file that cannot be written stops nothing: `failure` says why, and stderr gets a line.
    """

    failure: str | None = None
    """Why the last checkpoint could not be written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write the file and let the disk confirm it, then give it its name."""
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _confirm(target.parent)
            self.failure = None
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, where it could not finish the archive
            with suppress(OSError):
                part.unlink()
            self.failure = _reason(error)
            print(
                f"deocc: cannot write {target} ({self.failure}): training goes on; make room, it is tried again",
                file=sys.stderr,
                flush=True,
            )

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content, on the CPU; whatever `weights_only` says, nothing in the file is executed.

        Raises:
            FileNotFoundError: no file there.
            ValueError: the file is damaged or no checkpoint.
        """
        return read_checkpoint(Path(path))


def _confirm(folder: Path) -> None:
    """Make the new name last: a rename lies in the folder, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    return cause.strerror or str(cause) if isinstance(cause, OSError) else " ".join(str(error).split())[:120]
