"""A W&B run as its file in the run folder records it, which is what `wandb sync` uploads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record, RunRecord  # type: ignore[attr-defined]

_HEADER, _BLOCK, _FRAME = (
    7,
    32768,
    7,
)  # of a W&B log, which is a LevelDB log: bytes before the first block, of a block, of a chunk's frame
_WHOLE, _LAST = 1, 4  # the chunk types that end a record


@dataclass
class OfflineRun:
    """What W&B recorded of one command, as `wandb sync` would upload it."""

    folder: Path
    run: RunRecord = field(default_factory=RunRecord)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def logged(self, key: str) -> dict[str, Any]:
        """The row of history in which a key was logged last."""
        return [row for row in self.history if key in row][-1]

    def picture(self, key: str) -> NDArray[np.uint8]:
        """The last picture of a key, from the file that its row of history names."""
        (name,) = self.logged(key)[key]["filenames"]
        return np.array(Image.open(self.folder / "files" / name))

    def table(self, key: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "files" / self.logged(key)[key]["path"]).read_text())
        return content


def read_records(log: bytes) -> Iterator[Record]:
    """The records of a W&B log, without what has not been written to its end."""
    position, content = _HEADER, b""
    while position + _FRAME <= len(log):
        if (left := _BLOCK - position % _BLOCK) < _FRAME:
            position += left
            continue
        length, kind = int.from_bytes(log[position + 4 : position + 6], "little"), log[position + 6]
        position += _FRAME
        content += log[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST) and position <= len(log):
            yield Record.FromString(content)
            content = b""


def put(items: Any, target: dict[str, Any]) -> None:
    """Write the items of a record to the dictionary that they belong to; a nested key names the way to its value."""
    for item in items:
        *way, last = item.nested_key or [item.key]
        place = target
        for name in way:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)


def read_run(file: Path) -> OfflineRun:
    found = OfflineRun(file.parent)
    for record in read_records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                put(record.run.config.update, found.config)
            case "config":
                put(record.config.update, found.config)
            case "summary":
                put(record.summary.update, found.summary)
            case "history":
                found.history.append({})
                put(record.history.item, found.history[-1])
            case "exit":
                found.ended = True
    return found
