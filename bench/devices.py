"""Measurement of time and memory on a device, and its published peak performance."""

import statistics
import time
from collections.abc import Callable

import torch

Precision = str
PEAK_TERAFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "NVIDIA H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
}
"""Dense peaks by the beginning of the device's name.

Source: NVIDIA's white papers "H100 Tensor Core GPU Architecture" (the H200 has the same chip) and "A100 Tensor Core GPU
Architecture".
"""


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(name: str, precision: Precision) -> float | None:
    """Return the published floating-point operations per second, or None if unknown."""
    peaks = next((peaks for start, peaks in PEAK_TERAFLOPS.items() if name.startswith(start)), {})
    return 1e12 * peaks[precision] if precision in peaks else None


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(device: torch.device, call: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` synchronised calls after a warm-up."""
    call()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def peak_mebibytes_on(device: torch.device, call: Callable[[], object]) -> float | None:
    """Return by how much a call raises the allocated GPU memory; None on other devices."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
