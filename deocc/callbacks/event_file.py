"""TensorBoard's event file, written when it is flushed: TensorBoard's own writer ends for good, in a thread, where the disk is full."""

import io
import itertools
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from deocc.callbacks.write_faults import WriteFaults, add_whole

_VERSION: Final = "brain.Event:2"
_STAMP: Final = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_numbers = itertools.count()


class EventFileWriter(SummaryWriter):
    """A SummaryWriter whose events wait in memory where the file cannot be written."""

    def restart(self, step: int) -> None:
        """Mark that training begins anew at `step`: TensorBoard hides what it has of `step` and above."""
        self._get_file_writer().add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        self.flush()

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            writer: Any = _FileWriter(self.log_dir)
            writers: Any = {self.log_dir: writer}
            self.file_writer, self.all_writers = writer, writers
        return self.file_writer


class _FileWriter(FileWriter):
    def __init__(self, log_dir: str) -> None:
        self.event_writer = _EventFile(Path(log_dir))


class _EventFile:
    """What FileWriter asks of TensorBoard's EventFileWriter."""

    def __init__(self, folder: Path) -> None:
        stamps = [int(found[1]) for path in folder.glob("events.out.tfevents.*") if (found := _STAMP.match(path.name))]
        stamp = max([int(time.time()), *stamps])  # files are read in the order of their names, and a clock may have been set back
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path, self._waiting, self._faults = folder / name, io.BytesIO(), WriteFaults()
        self.add_event(Event(wall_time=time.time(), file_version=_VERSION))

    def get_logdir(self) -> str:
        return str(self._path.parent)

    def add_event(self, event: Any) -> None:
        RecordWriter(self._waiting).write(event.SerializeToString())

    def flush(self) -> None:
        if self._waiting.tell() > 0:
            with self._faults.spared(self._path, "what is logged is kept and written as soon as that works"):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                add_whole(self._path, self._waiting.getvalue())
                self._waiting = io.BytesIO()

    def close(self) -> None:
        self.flush()

    def reopen(self) -> None:
        """Nothing: the file is open only while it is written."""
