"""Signals that ask a training to stop: noted when they come, obeyed between two steps, where nothing is half done."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end that a machine announces; what SLURM sends ahead of a time limit (`--signal=USR1@120`)."""

_SAID: Final = {
    signal.SIGINT: "Ctrl-C: stopping after this step, with a checkpoint; Ctrl-C again stops at once",
    signal.SIGTERM: "SIGTERM: stopping after this step, with a checkpoint",
    signal.SIGUSR1: "SIGUSR1: stopping after this step, with a checkpoint",
}


class TrainingStopped(BaseException):
    """A training that was asked to stop, and has; not an `Exception`, so that nothing on the way takes it for an error to be handled.

    Attributes:
        signum: the signal that asked.
        run: the run folder.
        saved: whether a checkpoint of the very last step was written; False where it was stopped at once.
    """

    def __init__(self, signum: int, run: str, saved: bool) -> None:
        super().__init__(signum, run, saved)
        self.signum, self.run, self.saved = signum, run, saved


class StopSignals:
    """Notes the first signal of `ASKING`; the second one raises `TrainingStopped` wherever the training is."""

    def __init__(self) -> None:
        self.received: int = 0
        self._run, self._process, self._listening = "", os.getpid(), False
        self._former: dict[int, Callable[..., Any] | int | None] = {}

    def listen(self, run: str) -> None:
        """Take over the signals, or take them back from whoever did since. Python allows that in the main thread only.

        One that is ignored stays so: a shell lets what it starts in the background ignore the Ctrl-C that is meant for others.

        Args:
            run: the folder of the run that a signal stops.
        """
        self._run = run
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
            former: dict[int, Callable[..., Any] | int | None] = {number: signal.signal(number, self._note) for number in heard}
            self._former = self._former or former
            self._listening = True

    def leave(self) -> None:
        """Give the signals back."""
        self._listening, self.received = False, 0
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked loader worker, which the training ends when it stops
        if not self._listening:  # Lightning puts back what it found, after we have left
            signal.signal(signum, self._former[signum] or signal.SIG_DFL)
            os.kill(self._process, signum)
        elif self.received:
            raise TrainingStopped(signum, self._run, saved=False)
        else:
            self.received = signum
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, f"\ndeocc: {_SAID[signal.Signals(signum)]}\n".encode())  # print could meet itself here
