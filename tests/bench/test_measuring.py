"""Measurements with known results. Without torch, so that processes start fast."""

import pytest

from bench.measuring import in_own_process, median_ratio, paired_seconds, peak_mebibytes

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
