"""What the benchmark measures with: turns, ratios and peaks whose answer is known. Without torch, so that a process starts at once."""

import pytest

from bench.measuring import in_own_process, median_ratio, paired_seconds, peak_mebibytes

MEBIBYTE = 2**20


def peak_of_bytes(mebibytes: int) -> float:
    return peak_mebibytes(lambda: b"x" * (mebibytes * MEBIBYTE))


def test_the_peak_of_a_process_of_its_own_is_what_a_call_takes_and_not_what_the_parent_took() -> None:
    held = b"x" * (256 * MEBIBYTE)
    assert in_own_process(peak_of_bytes, 64) == pytest.approx(64, abs=8)
    assert len(held) == 256 * MEBIBYTE


def test_calls_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    ours, reference = paired_seconds(lambda: calls.append("ours"), lambda: calls.append("reference"), 3)
    assert calls == ["ours", "reference"] * 4
    assert len(ours) == len(reference) == 3


def test_the_ratio_is_that_of_the_middle_pair() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3
