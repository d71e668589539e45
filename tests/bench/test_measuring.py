"""Measurements with known results. Without torch, so that processes start fast."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from bench.measuring import (
    Pairs,
    compared,
    idle_and_loaded,
    in_own_process,
    load,
    median_ratio,
    paired_seconds,
    peak_mebibytes,
)

MEBIBYTE = 2**20


def peak_of_bytes(mebibytes: int) -> float:
    return peak_mebibytes(lambda: b"x" * (mebibytes * MEBIBYTE))


def test_peak_excludes_parent() -> None:
    held = b"x" * (256 * MEBIBYTE)
    assert in_own_process(peak_of_bytes, 64) == pytest.approx(64, abs=8)
    assert len(held) == 256 * MEBIBYTE


def test_paired_seconds_alternates() -> None:
    calls: list[str] = []
    ours, reference = paired_seconds(lambda: calls.append("ours"), lambda: calls.append("reference"), 3)
    assert calls == ["ours", "reference"] * 4
    assert len(ours) == len(reference) == 3


def test_median_ratio() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3


def test_compared_times_and_rates() -> None:
    idle, loaded = Pairs([1.0, 2.0, 3.0], [4.0, 8.0, 6.0]), Pairs([5.0], [15.0])
    assert compared("loss", "ms", idle, loaded) == {
        "what": "loss",
        "unit": "ms",
        "ours": 2000,
        "loaded": 5000,
        "reference": 6000,
        "ratio": 4,
        "loaded_ratio": 3,
    }
    rate = compared("step", "images/s", idle, count=10)
    assert (rate["ours"], rate["reference"]) == pytest.approx((5, 10 / 6)) and "loaded" not in rate


def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Return the list of all processes that this test starts."""
    processes: list[subprocess.Popen[bytes]] = []
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def record(*arguments: object) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments))
        return processes[-1]

    monkeypatch.setattr("bench.measuring.subprocess.Popen", record)
    return processes


def test_load_ends_with_block(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = started(monkeypatch)
    with pytest.raises(RuntimeError), load(2):
        assert len(processes) == 2 and all(process.poll() is None for process in processes)
        raise RuntimeError
    assert all(process.poll() is not None for process in processes)


def test_load_ends_with_parent() -> None:
    code = "from bench.measuring import load; block = load(1); block.__enter__(); print(flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"\n"
    parent.kill()
    parent.communicate(timeout=30)  # the busy process holds the other end of the pipe until it ends


def test_idle_before_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, counts = started(monkeypatch), []
    idle, loaded = idle_and_loaded(lambda: counts.append(len(processes)), lambda: None, 2)
    assert counts == [0, 0, 0, 2, 2, 2]
    assert len(idle.ours) == len(loaded.reference) == 2
